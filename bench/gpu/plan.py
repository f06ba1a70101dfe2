"""Which parts a run has, the most telling first, and the seconds each needs at the real size on an H100.

Correctness comes before speed; what compiles whole networks comes last, for it takes minutes.
"""

ESTIMATES = {
    "requests": 60.0,  # with the models' making
    "pictures": 80.0,
    "ours": 20.0,
    "lora": 30.0,
    "tokens": 10.0,
    "vae": 20.0,
    "peers": 30.0,
    "regions": 90.0,
    "lever-graph": 15.0,
    "lever-regions": 30.0,
    "batches": 25.0,
    "lever-decoder": 30.0,
    "lever-convolutions": 15.0,
    "lever-channels-last": 15.0,
    "lever-projections": 15.0,
    "lever-attention": 30.0,
    "lever-fp8": 60.0,
    "start": 300.0,
    "whole": 420.0,
}

import json

import pytest
import torch

from tilemix.errors import ManifestError
from tilemix.pipelines.schedulers import make_scheduler, prove_scheduler
from tilemix.samplers import find_sampler, load_samplers
from tilemix.system.project import ROOT

BASE = json.loads((ROOT / "tilemix" / "data" / "sdxl" / "scheduler" / "scheduler_config.json").read_text())


def test_karras_sigmas_follow_the_papers_formula():
    """Karras et al. 2022, equation 5, between SDXL's own largest and smallest sigma, rho 7."""
    scheduler = make_scheduler("dpm++_2m_karras", BASE)
    scheduler.set_timesteps(25)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    products = torch.cumprod(1 - betas, 0)
    low, high = (((1 - products[i]) / products[i]).sqrt() for i in (0, -1))
    ramp = torch.linspace(0, 1, 25, dtype=torch.float64)
    expected = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert high == pytest.approx(14.6146, abs=1e-3)
    torch.testing.assert_close(scheduler.sigmas[:25].double(), expected, rtol=1e-4, atol=1e-5)
    assert scheduler.sigmas[25] == 0
    assert scheduler.config.algorithm_type == "dpmsolver++"
    assert scheduler.timesteps[0] == 999  # full noise at the first step


def test_a_setting_of_the_manifest_goes_over_the_presets_and_the_bases():
    scheduler = make_scheduler("dpm++_2m_karras", BASE, {"use_karras_sigmas": False, "solver_order": 3})
    assert scheduler.config.use_karras_sigmas is False
    assert scheduler.config.solver_order == 3
    assert BASE["use_karras_sigmas"] is False


@pytest.mark.parametrize("name", load_samplers())
@pytest.mark.parametrize("steps", [1, 2, 25, 100])
def test_every_scheduler_ends_finite_at_every_number_of_steps(name, steps):
    most = load_samplers()[name].most_steps
    scheduler = make_scheduler(name, BASE)
    scheduler.set_timesteps(min(steps, most or steps))
    scheduler_noise = torch.Generator().manual_seed(0)
    sample = torch.randn((1, 4, 8, 8), generator=scheduler_noise) * scheduler.init_noise_sigma
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(scaled * 0.1, timestep, sample, return_dict=False)[0]
    assert bool(sample.isfinite().all())


def test_an_unknown_name_or_setting_is_refused():
    with pytest.raises(ManifestError, match=r"^unknown scheduler 'eular'; known: ddim, dpm"):
        make_scheduler("eular", BASE)
    with pytest.raises(ManifestError, match="^scheduler 'euler' has no setting 'use_karma_sigmas'$"):
        make_scheduler("euler", BASE, {"use_karma_sigmas": True})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_karras_sigmas": "yes"}, """use_karras_sigmas is "yes", expected true or false"""),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps is 1000.5, expected a whole number"),
        ({"num_train_timesteps": True}, "num_train_timesteps is true, expected a whole number"),
        ({"beta_schedule": 1}, "beta_schedule is 1, expected a text"),
        ({"num_train_timesteps": -5}, "cannot be used with these settings: "),
        ({"num_train_timesteps": 0}, "cannot be used with these settings: "),
        ({"beta_schedule": "cubic"}, "cannot be used with these settings: cubic is not implemented"),
        ({"timestep_spacing": "wide"}, "cannot be used with these settings: "),
        ({"prediction_type": "guess"}, "cannot be used with these settings: "),
        ({"beta_start": -1}, "cannot be used with these settings: "),
    ],
)
@pytest.mark.parametrize("name", ["euler", "dpm++_2m_karras", "unipc"])
def test_a_setting_that_cannot_be_used_is_one_line(name, config, message):
    state = torch.random.get_rng_state()
    with pytest.raises(ManifestError) as caught:
        prove_scheduler(name, make_scheduler(name, BASE, config))
    assert str(caught.value).removeprefix(f"scheduler '{name}'").lstrip(": ").startswith(message)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_noise_levels_that_are_not_numbers_are_refused():
    with pytest.raises(
        ManifestError, match="^scheduler 'euler' cannot be .*: the noise levels are not finite$"
    ):
        prove_scheduler("euler", make_scheduler("euler", BASE, {"beta_end": 3}))


@pytest.mark.parametrize("name", load_samplers())
def test_the_trial_passes_every_scheduler_as_it_is(name):
    prove_scheduler(name, make_scheduler(name, BASE, {"beta_start": 0.001, "beta_end": 0.02}))


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Euler", "euler"), ("Euler a", "euler_a"), ("DPM++ 2M", "dpm++_2m"), ("DPM++ 2M Karras", "dpm++_2m_karras"),
        ("DPM++ SDE Karras", "dpm++_sde_karras"), ("DDIM", "ddim"), ("UniPC", "unipc"), ("LCM", "lcm"), ("TCD", "tcd"),
        ("dpm++ 2m karras", "dpm++_2m_karras"), ("euler_a", "euler_a"), ("DPM++ SDE", None), ("Heun", None),
    ],
)  # fmt: skip
def test_a_sampler_is_found_by_the_names_that_people_know(typed, name):
    found = find_sampler(typed)
    assert (None if found is None else found.name) == name
    if found is not None:
        assert type(make_scheduler(typed, BASE)).__name__ == found.scheduler

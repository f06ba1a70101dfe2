import json
import os
import threading
from pathlib import Path

import pytest

from tilemix.catalogue.rows import Row, RowFile
from tilemix.errors import InputError, TilemixError

MIX = "50% red, 30% black, 20% pearl"


def read(tmp_path, data, **common):
    path = tmp_path / "rows"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    rows = RowFile(path, common)
    found = list(rows)
    rows.close()
    assert len(found) == rows.count
    return found


def read_fault(tmp_path, data):
    (row,) = read(tmp_path, data)
    return str(row.fault)


@pytest.mark.parametrize(
    "text",
    [
        f'mix,seed\n"{MIX}",7\n',
        f"mix;seed\n{MIX};7\n",  # as Excel writes it in Germany
        f"Mix\tSEED\r\n{MIX}\t7\r\n",
        f"mix;seed\r{MIX};7\r",  # as some spreadsheets end lines
        f'\n  \nmix,seed\n"{MIX}",7\n',
        f'\ufeffmix,seed\n"{MIX}",7',
        f'seed,mix\n\n7,"{MIX}"\n,\n\n',
        json.dumps({"mix": MIX, "seed": 7, "width": None}),
        f"\n\n  {json.dumps({'seed': 7, 'mix': MIX})}\n\n",
    ],
)
def test_rows_are_read_from_csv_and_json_lines(tmp_path, text):
    assert read(tmp_path, text) == [Row(1, {"prompt": MIX, "seed": 7}, is_mix=True)]


def test_rows_may_come_through_a_pipe_but_from_no_device(tmp_path):
    """A pipe ended in a traceback, and /dev/zero filled the memory."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[f'mix,seed\n"{MIX}",7\n'])
    writer.start()
    rows = RowFile(pipe)
    assert list(rows) == list(rows) == [Row(1, {"prompt": MIX, "seed": 7}, is_mix=True)]
    rows.close()
    writer.join()
    with pytest.raises(TilemixError, match="^/dev/zero: not a regular file"):
        RowFile(Path("/dev/zero"))


def test_a_header_that_is_too_long_is_not_csv(tmp_path):
    with pytest.raises(InputError, match="line 3 is not CSV: field larger than field limit"):
        read(tmp_path, "\n\nmix," + 200_000 * "x" + "\n")


def test_every_input_may_have_a_column_and_an_empty_cell_is_left_out(tmp_path):
    text = (
        "prompt,negative_prompt,size,steps,guidance_scale,lora_scale,output_format\n"
        "a wet tile,blurry,512x256,8,2.5,0.9,webp\n"
        "another,,384,,,,\n"
    )
    assert [row.inputs for row in read(tmp_path, text, width=1024, num_inference_steps=4)] == [
        {
            "prompt": "a wet tile",
            "negative_prompt": "blurry",
            "width": 512,
            "height": 256,
            "num_inference_steps": 8,
            "guidance_scale": 2.5,
            "lora_scale": 0.9,
            "output_format": "webp",
        },
        {"prompt": "another", "width": 384, "height": 384, "num_inference_steps": 4},
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"mix\n{MIX}\n", "3 cells, the header has 1; a mix with commas stands in quotes"),
        ("mix,seed\n100% red,x\n", "seed 'x' is not an integer; expected -1 to 4294967295"),
        ("mix,size\n100% red,big\n", "size 'big': expected such as '512x512' or '512'"),
        ("mix,seed\n,7\n", "neither a mix nor a prompt"),
        ('{"mix": "100% red", ', """not a JSON object: '{"mix": "100% red", '"""),
        ('{"mix": "100% red"}\n[1]', None),
        ('{"sede": 7, "mix": "100% red"}', "unknown column 'sede'; known: mix, prompt, "),
        ('{"seed": 7}', "expected a column 'mix' or a column 'prompt', and not both"),
        ('{"mix": "100% red", "steps": 2, "num_inference_steps": 3}', "columns 'steps' and 'num_inf"),
        ("{" * 100_000, "not a JSON object: "),
    ],
)  # fmt: skip
def test_a_bad_row_is_told_and_costs_no_other(tmp_path, text, fault):
    *_, row = read(tmp_path, text)
    assert str(row.fault).startswith(fault or "not a JSON object: '[1]'")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("", "no rows; expected a header and one row or more"),
        ("mix\n\n", "no rows; expected a header and one row or more"),
        ("mixture\n100% red\n", "the header: unknown column 'mixture'; known: mix, prompt, negative_prompt, seed, "),
        ("seed\n7\n", "the header: expected a column 'mix' or a column 'prompt', and not both"),
        ("mix,prompt\na,b\n", "the header: expected a column 'mix' or a column 'prompt', and not both"),
        ("mix,seed,seed\na,1,1\n", "the header: column 'seed' is named twice; expected each column once"),
        ("mix,size,width\na,1,1\n", "the header: columns 'size' and 'width' say the same; expected one of them"),
        ("mix\n100% red\n100% weiß\n".encode("latin-1"), "line 3 is not UTF-8; save the file as UTF-8"),
        ("mix\n100% red\n".encode("utf-16"), "line 1 is not UTF-8; save the file as UTF-8"),
        ('mix\n"100% red\n', "line 2 is not CSV: unexpected end of data"),
        ('mix\n"100% red"x\n', "line 2 is not CSV: "),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_before_anything_is_drawn(tmp_path, data, line):
    with pytest.raises(InputError) as caught:
        read(tmp_path, data)
    assert str(caught.value).startswith(f"{tmp_path}/rows: {line}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TilemixError, match="nowhere: cannot be read: No such file or directory$"):
        RowFile(tmp_path / "nowhere")


def test_a_file_replaced_in_the_middle_changes_nothing_and_one_cut_short_is_told(tmp_path):
    path = tmp_path / "rows"
    path.write_text("mix\n" + "100% red\n" * 3)
    rows = RowFile(path)
    other = tmp_path / "other"
    other.write_text("mix\n100% blue\n")
    other.replace(path)
    assert [row.inputs["prompt"] for row in rows] == ["100% red"] * 3
    rows.close()

    path.write_text("mix\n" + "100% red\n" * 3)
    rows = RowFile(path)
    path.write_text("mix\n100% red\n")
    with pytest.raises(InputError, match="rows: changed while it was read$"):
        list(rows)
    rows.close()

"""The README and the pages in docs/ are read here and held against the code: tables, maps, links, code blocks."""

import json
import re
import shlex

import msgspec
import pytest

from tests.adapter_formats import render_table
from tests.test_cli import EXAMPLE
from tilemix.cli import main, make_parser
from tilemix.inputs import ChoiceInput, TextInput, load_inputs
from tilemix.prompts.mix import parse_mix
from tilemix.studio import settings
from tilemix.system.project import DEFAULT_MODEL, ROOT
from tilemix.tuning.config import TuningConfig
from tilemix.weights import load_manifest
from tilemix.weights.calibration import find_calibration, resolve_lora_scales, resolve_strength

OURS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in OURS}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a page says of a file of ours: `tilemix/errors.py`. Capitals stand for a name of the reader's own.
PATH = re.compile(r"`((?:tilemix|miniature|tools|bench|tests|docs|prompt_templates|weights)/[a-z0-9_./*-]*)`")
VARIABLE = re.compile(r"\b(?:TILEMIX|WEBHOOK|REPLICATE)_[A-Z_]+\b")
MOST_LINES = 160  # of the README


def section(page: str, title: str) -> str:
    """Return what stands under a heading, up to the next one."""
    parts = re.split(r"^#{2,3} (.+)$", PAGES[page], flags=re.MULTILINE)
    return parts[parts.index(title) + 1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every row of the tables in a text."""
    lines = text.splitlines()
    heads = {number for number, line in enumerate(lines) if re.fullmatch(r"\|[-|]+\|", line)}
    table = [
        line for number, line in enumerate(lines) if line.startswith("|") and not heads & {number, number + 1}
    ]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table]
    return [[cell.strip() for cell in row] for row in cells]


def blocks(*languages: str) -> list[pytest.param]:
    """Return the code blocks of all pages in these languages."""
    return [
        pytest.param(match[2], id=f"{page}:{PAGES[page][: match.start()].count(chr(10)) + 1}")
        for page in PAGES
        for match in FENCE.finditer(PAGES[page])
        if match[1] in languages
    ]


def commands() -> list[pytest.param]:
    """Return every `tilemix` and `make` command that a shell block shows, as words."""
    found = []
    for language, prompt in (("sh", ""), ("console", "$ ")):
        for block in blocks(language):
            for line in block.values[0].replace("\\\n", " ").splitlines():
                if line.startswith(
                    tuple(prompt + own for own in ("tilemix ", ".venv/bin/tilemix ", "make "))
                ):
                    words = shlex.split(line.removeprefix(prompt), comments=True)
                    found.append(pytest.param(words, id=f"{block.id} {line[:60]}"))
    return found


def slugs(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_a_page():
    assert PAGES["README.md"].count("\n") <= MOST_LINES


@pytest.mark.parametrize("row", rows(section("docs/mixes.md", "What you can type")), ids=lambda row: row[0])
def test_every_mix_of_the_table_is_read_as_it_says(row):
    typed, sent = (cell.strip("`") for cell in row)
    assert parse_mix(typed).text == sent


@pytest.mark.parametrize("row", rows(section("docs/mixes.md", "Languages")), ids=lambda row: row[1])
def test_every_mix_of_a_language_is_read_as_it_says(row):
    _, typed, sent = (cell.strip("`") for cell in row)
    assert parse_mix(typed).text == sent


@pytest.mark.parametrize("page", ["README.md", "docs/mixes.md"])
def test_the_prompt_shown_is_the_prompt_sent(page):
    assert EXAMPLE in PAGES[page]


@pytest.mark.parametrize(
    "block", [block for block in blocks("console") if "tilemix rewrite" in block.values[0]]
)
def test_the_answers_of_rewrite_are_those_shown(block, capsys):
    for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, answer = shown.partition("\n")
        words = shlex.split(command)[1:]
        if words[0] == "rewrite":
            main(words)
            out, err = capsys.readouterr()
            assert out + err == answer


def test_the_inputs_are_the_requests():
    table = {row[0].strip("`"): row[1:] for row in rows(section("docs/api.md", "Inputs"))}
    assert list(table) == list(load_inputs())
    for name, row in load_inputs().items():
        limits = table[name][1]
        if isinstance(row, ChoiceInput):
            assert table[name][1:] == [", ".join(row.choices), row.default]
        elif isinstance(row, TextInput):
            assert limits.startswith((f"{row.min_length} to {row.max_length} ", f"up to {row.max_length} "))
        else:
            multiple = getattr(row, "multiple", 1)
            assert limits.startswith(f"{row.minimum} to {row.maximum}"), name
            assert limits.endswith(f", a multiple of {multiple}") or multiple == 1, name
    product, miniature = (load_manifest(name).defaults for name in ("rubber-tile", "miniature"))
    assert table["width"][2] == str(product.width) == str(miniature.width)
    assert table["height"][2] == str(product.height) == str(miniature.height)
    assert (
        table["num_inference_steps"][2]
        == str(product.num_inference_steps)
        == str(miniature.num_inference_steps)
    )
    expected = f"{product.guidance_scale:g} (miniature: {miniature.guidance_scale:g})"
    assert table["guidance_scale"][2] == expected
    product, miniature = map(list_calibrated, ("rubber-tile", "miniature"))
    for name in ("strength", "lora_scale"):
        assert table[name][2] == f"{product[name]:g} (miniature: {miniature[name]:g})"
        assert load_inputs()[name].calibrated


def list_calibrated(model: str) -> dict[str, float]:
    """What a request gets for the inputs that a calibration may decide."""
    manifest = load_manifest(model)
    calibration = find_calibration(model, manifest)
    (scale,) = resolve_lora_scales(manifest, calibration).values()
    return {"strength": resolve_strength(manifest, calibration), "lora_scale": scale}


def test_the_verbs_are_the_command_lines():
    verbs = re.findall(r"^    (\w+) ", make_parser().format_help(), re.MULTILINE)
    table = rows(section("README.md", "On the command line"))
    assert [row[0].strip("`").split()[0] for row in table] == verbs


def test_the_map_names_every_module_and_no_other():
    tree = section("docs/architecture.md", "The rooms").partition("tilemix/\n")[2]
    named = set(re.findall(r"^  (\w+(?:/|\b))", tree, re.MULTILINE))
    package = ROOT / "tilemix"
    there = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    there |= {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert named == there


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_file_and_heading_linked_is_there(page):
    folder = (ROOT / page).parent
    prose = FENCE.sub("", PAGES[page])
    links = re.findall(r"\]\((?!https?://)([^)]+)\)|<img src=\"([^\"]+)\"", prose)
    for target, _, anchor in ((link or picture).partition("#") for link, picture in links):
        path = folder / target if target else ROOT / page
        assert path.is_file(), target
        assert not anchor or anchor in slugs(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_named_is_there(page):
    for path in PATH.findall(PAGES[page]):
        assert path.startswith("weights/files") or list(ROOT.glob(path)), path


def test_every_page_is_in_the_readme():
    linked = set(re.findall(r"\((docs/\w+\.md|CONTRIBUTING\.md)[#)]", PAGES["README.md"]))
    assert linked == set(PAGES) - {"README.md"}


@pytest.mark.parametrize("code", blocks("python"))
def test_python_shown_compiles(code):
    compile(code, "docs", "exec")


@pytest.mark.parametrize("text", blocks("json"))
def test_json_shown_is_json(text):
    json.loads(text)


@pytest.mark.parametrize("words", commands())
def test_every_command_shown_is_one(words):
    if words[0] == "make":
        (target,) = (word for word in words[1:] if "=" not in word)
        assert re.search(rf"^{re.escape(target)}( [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        make_parser().parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_named_is_read(page):
    """The code, Cog or Replicate reads it; TILEMIX_* is all ours."""
    source = "".join(path.read_text() for path in (ROOT / "tilemix").rglob("*.py"))
    for name in VARIABLE.findall(PAGES[page]):
        assert name in source, name


def test_the_adapter_formats_are_those_that_the_tests_craft():
    assert render_table().strip() in section("docs/adapters.md", "Every format")


def test_the_settings_are_the_studios():
    source = (ROOT / "tilemix" / "studio" / "settings.py").read_text()
    named = {row[0].strip("`") for row in rows(section("docs/studio.md", "Settings"))}
    assert named == set(re.findall(r"\"((?:TILEMIX|WEBHOOK|REPLICATE)_[A-Z_]+)\"", source))
    left_out = {
        row[0].strip("`"): row[2].split(";")[0] for row in rows(section("docs/studio.md", "Settings"))
    }
    defaults = {
        "TILEMIX_MODEL": DEFAULT_MODEL,
        "TILEMIX_STUDIO_HOST": settings.HOST,
        "TILEMIX_STUDIO_PORT": settings.PORT,
        "TILEMIX_STUDIO_BACKEND": settings.BACKENDS[0],
        "TILEMIX_STUDIO_DEADLINE": settings.DEADLINE_SECONDS,
        "TILEMIX_STUDIO_QUEUE": settings.MOST_WAITING,
        "TILEMIX_STUDIO_SLOTS": settings.SLOTS,
        "TILEMIX_COG_URL": settings.COG_URL,
    }
    assert {name: left_out[name] for name in defaults} == {
        name: f"`{value}`" for name, value in defaults.items()
    }


def test_the_calls_and_statuses_are_those_of_the_apis_document():
    document = json.loads((ROOT / "tilemix" / "studio" / "openapi.json").read_text())
    operations = {
        f"{verb.upper()} {path}": operation
        for path, verbs in document["paths"].items()
        for verb, operation in verbs.items()
        if verb in {"get", "post", "put", "delete"}
    }
    assert {row[0].strip("`") for row in rows(section("docs/api.md", "The studio's API"))} == set(operations)
    statuses = {status for operation in operations.values() for status in operation["responses"]}
    assert [row[0] for row in rows(section("docs/api.md", "Errors"))] == sorted(
        status for status in statuses if status >= "400"
    )


def test_the_trainings_keys_and_defaults_are_the_configurations():
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(section("docs/training.md", "Every key"))}
    expected = {}
    for key in msgspec.structs.fields(TuningConfig):
        inner = {"embeddings", "lora", "samples"} & {key.name}
        if not inner:
            expected[key.name] = key
            continue
        struct = key.type if isinstance(key.type, type) else key.type.__args__[0]
        expected |= {f"{key.name}.{one.name}": one for one in msgspec.structs.fields(struct)}
    assert list(table) == list(expected)
    for name, key in expected.items():
        if key.required:
            assert table[name].startswith("required"), name
        elif key.default_factory is not msgspec.NODEFAULT:
            assert table[name] == json.dumps(key.default_factory()), name
        elif key.default is not None:
            shown = f"{key.default:g}" if isinstance(key.default, float) else json.dumps(key.default)
            assert table[name] == shown, name


def test_the_training_shown_is_a_configuration():
    (text,) = (match[2] for match in FENCE.finditer(PAGES["docs/training.md"]) if match[1] == "json")
    config = msgspec.json.decode(text, type=TuningConfig)
    for suffix in ("lora.safetensors", "embeddings.safetensors", "training.json"):
        assert f"`{config.name}_sdxl_{suffix}`" in PAGES["docs/training.md"]


def test_the_miniatures_figures_are_its_reports():
    report = rows((ROOT / "weights" / "miniature" / "REPORT.md").read_text())
    table = [
        row
        for row in rows(section("README.md", "How fast, how good"))
        if row[0].startswith(("mean", "the", "colors"))
    ]
    assert len(table) == 4
    assert all(row in report for row in table)


def test_the_names_of_other_predictors_are_those_that_the_api_knows():
    section = (
        (ROOT / "docs" / "api.md")
        .read_text("utf-8")
        .split("### Inputs of other predictors")[1]
        .split("##")[0]
    )
    listed = {}
    for row in re.findall(r"^\| (`.*?) \| `(\w+)`", section, re.MULTILINE):
        listed[row[1]] = tuple(re.findall(r"`(\w+)`", row[0]))
    assert listed == {row.name: row.elsewhere for row in load_inputs().values() if row.elsewhere}


def test_every_promise_names_the_tests_that_hold_it():
    promises = re.split(r"^[0-9]+\. ", section("docs/RELIABILITY.md", "Promises"), flags=re.MULTILINE)[1:]
    assert len(promises) > 10
    for promise in promises:
        assert re.search(r"Held by `tests/test_\w+\.py`", promise), promise

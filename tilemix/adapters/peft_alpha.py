"""alpha / rank of LoRA files that keep alpha in a PEFT configuration instead of in tensors.

The configuration is PEFT's LoraConfig as JSON: `adapter_config.json` beside the file, or, from diffusers,
`lora_adapter_metadata` in the header. A pipeline's file has the component before each field there
(`unet.lora_alpha`), the file of one network has not. Of some forty fields, those that change what the tensors mean are
read; the others describe the training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from tilemix.deltas import MAX_ALPHA
from tilemix.errors import LIST_SEPARATOR, AdapterError
from tilemix.modelfile import companions
from tilemix.modelfile.spellings import COMPONENTS

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.adapters.names import ModuleKey
    from tilemix.modelfile.header import Header

PLAIN_PATH = re.compile(
    r"[A-Za-z0-9_.]+"
)  # a path; its dots are literal, though as an expression they match any character
MAX_PATTERN = 200  # characters
NESTING = re.compile(r"\)[*+?{]|\(\?|\\[1-9]")  # a repeated group, an extension of the notation, a reference
MAX_REPEATS = 3  # `*`, `+` and the like in a pattern: each multiplies the time that a match can take
# These change the base itself too, so the pair alone is not the whole change.
INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftConfig(msgspec.Struct, frozen=True):
    """The fields of a LoraConfig that matter for loading."""

    peft_type: str = "LORA"
    lora_alpha: float | None = None  # None: the factor is 1
    alpha_pattern: dict[str, float] = {}  # a regular expression for the end of a module's path -> its alpha
    use_dora: bool = False  # every module has a norm among the tensors
    use_rslora: bool = False  # divide by sqrt(rank) instead of rank (arXiv 2312.03732)
    init_lora_weights: bool | str | None = True
    # Those that follow make of the pair something else than up @ down, or add to it; unset is None or False.
    alora_invocation_tokens: object = None
    arrow_config: object = None
    fan_in_fan_out: object = None
    kasa_config: object = None
    layer_replication: object = None
    lora_bias: object = None
    monteclora_config: object = None
    use_bdlora: object = None
    use_qalora: object = None


FOREIGN = tuple(field.name for field in msgspec.structs.fields(PeftConfig) if field.type is object)


class AlphaTable:
    """The alphas of one file, by component. Ranks are the tensors' own.

    Args:
        source: the configuration's name in messages.
        configs: the components' configurations.
    """

    def __init__(self, source: str, configs: Mapping[str, PeftConfig]) -> None:
        self._source = source
        self._configs = dict(configs)
        self._patterns: dict[str, _Patterns] = {}
        for component, config in self._configs.items():
            self._check(config)
            self._patterns[component] = _Patterns(source, config.alpha_pattern)

    def factor(self, key: ModuleKey, rank: int) -> float:
        """Return alpha / rank (alpha / sqrt(rank) for rsLoRA) of a module; 1 where the configuration is silent."""
        component, module = key
        config = self._configs.get(component)
        if config is None:
            return 1.0
        # A pattern starts at the model that PEFT wrapped, a network or several. Older files have a `text_model.` in
        # it that transformers 5 dropped.
        paths = [
            f"{start}{between}{module}" for start in ("", f"{component}.") for between in ("", "text_model.")
        ]
        alpha = self._patterns[component].find(paths)
        if alpha is None:
            alpha = config.lora_alpha
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if config.use_rslora else rank)

    def refuse_missing_norm(self, key: ModuleKey) -> None:
        """Refuse a module without DoRA's learned norm where the configuration promises one.

        Raises:
            AdapterError: it does.
        """
        if (config := self._configs.get(key[0])) is not None and config.use_dora:
            raise AdapterError("lora-config-magnitude", file=self._source, module=".".join(key))

    def refuse_absent(self, components: Collection[str]) -> None:
        """Refuse a configuration of a component that the file has no tensors for: what it is about is not told.

        Raises:
            AdapterError: there is one.
        """
        for component in self._configs:
            if component not in components:
                raise AdapterError(
                    "lora-config-component",
                    file=self._source,
                    found=component[:80],
                    components=LIST_SEPARATOR.join(components),
                )

    def refuse_unused(self) -> None:
        """Refuse a pattern that matches none of the file's modules: it was meant for one, in another spelling.

        Raises:
            AdapterError: there is one.
        """
        used = {pattern for patterns in self._patterns.values() for pattern in patterns.used}
        for config in self._configs.values():
            for pattern in config.alpha_pattern:
                if pattern not in used:
                    raise AdapterError("lora-config-unused", file=self._source, pattern=pattern)

    def _check(self, config: PeftConfig) -> None:
        for alpha in (config.lora_alpha, *config.alpha_pattern.values()):
            if alpha is not None and not 0 <= alpha <= MAX_ALPHA:
                raise AdapterError("lora-config-alpha", file=self._source, alpha=alpha, most=MAX_ALPHA)
        if config.peft_type != "LORA":
            raise AdapterError("lora-config-type", file=self._source, found=config.peft_type[:40])
        init = config.init_lora_weights
        if isinstance(init, str) and init.lower().startswith(INITS_THAT_CHANGE_THE_BASE):
            raise AdapterError("lora-config-init", file=self._source, found=init[:40])
        for name in FOREIGN:
            if getattr(config, name):
                raise AdapterError("lora-config-foreign", file=self._source, name=name)


class _Patterns:
    """PEFT's rule: an expression matches the end of a module's path, from the start of a name; the first match counts.

    Most are plain names, hundreds of them where every module has its own alpha. Those are looked up in a table.
    """

    def __init__(self, source: str, alphas: Mapping[str, float]) -> None:
        self.used: set[str] = set()
        self._alphas = dict(alphas)
        self._places = {pattern: place for place, pattern in enumerate(alphas)}
        self._expressions = [
            (pattern, self._compile(source, pattern))
            for pattern in alphas
            if not PLAIN_PATH.fullmatch(pattern)
        ]

    def find(self, paths: Sequence[str]) -> float | None:
        """Return the alpha of the first pattern that matches one of the paths; None if none does."""
        endings = (path[start:] for path in paths for start in _name_starts(path))
        fitting = [ending for ending in endings if ending in self._places]
        fitting += [
            pattern
            for pattern, expression in self._expressions
            if any(expression.match(path) for path in paths)
        ]
        if not fitting:
            return None
        self.used.update(fitting)
        return self._alphas[min(fitting, key=self._places.__getitem__)]

    def _compile(self, source: str, pattern: str) -> re.Pattern[str]:
        # A file must not bring an expression that takes forever to match: few repeats, and none of a group.
        shown = pattern[:80]
        repeats = sum(pattern.count(character) for character in "*+?{")
        if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or NESTING.search(pattern):
            raise AdapterError(
                "lora-config-pattern", file=source, pattern=shown, most=MAX_PATTERN, repeats=MAX_REPEATS
            )
        try:
            return re.compile(rf"(?:.*\.)?(?:{pattern})$")
        except re.error as error:
            raise AdapterError(
                "lora-config-pattern-broken", file=source, pattern=shown, reason=str(error)
            ) from error


def _name_starts(path: str) -> list[int]:
    return [0, *(place + 1 for place, character in enumerate(path) if character == ".")]


def read_header_alphas(name: str, header: Header, components: Collection[str]) -> AlphaTable:
    """Read `lora_adapter_metadata` from a header; without it the table is empty and every factor is 1.

    Args:
        name: the file's name.
        header: its header.
        components: that its tensors are for.

    Raises:
        AdapterError: it is not a JSON object, a field that matters is out of range, or it is about another component.
    """
    source = f"{name}: lora_adapter_metadata"
    raw = header.metadata.get("lora_adapter_metadata")
    if raw is None:
        return AlphaTable(source, {})
    fields: dict[str, dict[str, object]] = {}
    try:
        for key, value in msgspec.json.decode(raw, type=dict[str, object]).items():
            component, _, field = key.rpartition(".")
            fields.setdefault(component, {})[field] = value
        configs = {component: msgspec.convert(table, PeftConfig) for component, table in fields.items()}
    except (msgspec.DecodeError, RecursionError) as error:
        raise AdapterError("file-json", file=source, reason=str(error)[:120]) from error
    if (shared := configs.pop("", None)) is not None:
        configs = dict.fromkeys(components, shared) | configs
    table = AlphaTable(source, configs)
    table.refuse_absent(components)
    return table


def read_peft_config(path: Path) -> AlphaTable:
    """Read `adapter_config.json`, which applies to every component of the file beside it.

    Raises:
        AdapterError: it is missing, too large, not JSON, or a field that matters is out of range.
    """
    config = companions.decode_peft_config(
        companions.read_peft_config(path, path.name), path.name, PeftConfig
    )
    return AlphaTable(path.name, dict.fromkeys(COMPONENTS, config))

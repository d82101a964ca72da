"""The VLM that a policy names: its dimensions, its tokenizer, and whether it has weights; never remote code."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxreflow.errors import CheckpointError, ConfigError, ProcessorError
from jaxreflow.model.config import TextConfig, VisionConfig, VLMConfig
from jaxreflow.policy.config import DEFAULT_VLM, PolicyConfig
from jaxreflow.support.hub import HUB_NAME, HubError, download
from jaxreflow.support.strict_json import parse_json

FAKE_IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN = "<fake_token_around_image>", "<global-img>"
VLM_FOLDER = "vlm"
# Above every SmolVLM's, and few enough to trace the network in seconds.
_LARGEST_WIDTH = 1 << 16
_LARGEST = {"vocab_size": 1 << 20, "num_hidden_layers": 64}
# Everything but weights.
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]


@dataclasses.dataclass(frozen=True)
class VLMFiles:
    """The VLM's dimensions and the folder they were read from (None: the default model's, built in)."""

    config: VLMConfig
    directory: Path | None


def load_vlm(policy: PolicyConfig, checkpoint_dir: Path | None, vlm: str | Path | None = None) -> VLMFiles:
    """The VLM's dimensions: from `vlm`, the checkpoint's `vlm/`, or `vlm_model_name` (folder, built in, cache, hub).

    Raises:
        ConfigError: the VLM is no SmolVLM, or asks for what the network does not have.
        CheckpointError: it was not found; the message says where it was looked for.
    """
    places = Places(policy.vlm_model_name, checkpoint_dir, vlm)
    directory = places.find_local(_has_config)
    if directory is None and policy.vlm_model_name == DEFAULT_VLM:
        return VLMFiles(VLMConfig(), None)
    if directory is None:
        directory = places.find_on_hub(policy.vlm_model_name, _has_config, "the VLM's config.json")
    config = _read_config(directory)
    if policy.add_image_special_tokens:
        fake, start = special_token_ids(load_tokenizer(policy, checkpoint_dir, vlm))
        config = dataclasses.replace(config, fake_image_token_id=fake, global_image_token_id=start)
    else:
        config = dataclasses.replace(config, fake_image_token_id=-1, global_image_token_id=-1)
    return VLMFiles(config, directory)


def load_tokenizer(
    policy: PolicyConfig,
    checkpoint_dir: Path | None,
    vlm: str | Path | None = None,
    tokenizer_name: str | None = None,
    *,
    local_only: bool = False,
) -> Any:
    """A `transformers` tokenizer: from `vlm`, the checkpoint's `vlm/`, or the processor files' `tokenizer_name`
    (a folder, also one in the checkpoint, or a hub name), else from `vlm_model_name`.

    With `local_only` neither the hub nor its cache is asked, and None says that no folder has a tokenizer.

    Raises:
        CheckpointError: it was not found; the message says where it was looked for.
        ProcessorError: its files are damaged or ask for remote code.
    """
    name = tokenizer_name or policy.vlm_model_name
    places = Places(name, checkpoint_dir, vlm, alternative=policy.vlm_model_name)
    directory = places.find_local(_has_tokenizer)
    if directory is None:
        if local_only:
            return None
        hub_name = name if HUB_NAME.fullmatch(name) else policy.vlm_model_name
        directory = places.find_on_hub(hub_name, _has_tokenizer, "a tokenizer")
    with tokenizer_errors(f"{directory}: the tokenizer cannot be read"):
        return _transformers().AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )


@contextlib.contextmanager
def tokenizer_errors(problem: str) -> Iterator[None]:
    """ProcessorError for whatever `tokenizers` makes of damaged files: bare Exceptions, and panics, which are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ProcessorError(f"{problem} ({type(error).__name__}: {error})") from error


def special_token_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of the tokens around an image and before the global image; -1 where the tokenizer has none."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary.get(FAKE_IMAGE_TOKEN, -1), vocabulary.get(GLOBAL_IMAGE_TOKEN, -1)


def has_weights(vlm_model_name: str) -> bool:
    """Whether LeRobot finds weights under the name: a folder needs safetensors, a hub name counts."""
    path = Path(vlm_model_name).expanduser()
    if os.path.isdir(path):  # noqa: PTH112 (see _is_file)
        return any(path.glob("*.safetensors"))
    return HUB_NAME.fullmatch(vlm_model_name) is not None


def text_dtype(directory: Path | None) -> np.dtype:
    """The dtype that a VLM's config names for its text model; SmolVLM2's, bfloat16, where it names none."""
    config = parse_json((directory / "config.json").read_text(encoding="utf-8")) if directory is not None else {}
    text = config.get("text_config") or {}
    name = text.get("dtype") or text.get("torch_dtype") or "bfloat16"
    return np.dtype(np.float32) if name == "float32" else np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the VLM's files may lie, in the order in which they are looked for."""

    name: str
    checkpoint_dir: Path | None
    vlm: str | Path | None
    alternative: str | None = None

    def folders(self) -> Iterator[Path]:
        """The folders, existing or not."""
        if self.vlm is not None:
            folder = Path(self.vlm).expanduser()
            if not folder.is_dir():
                raise CheckpointError(
                    f"vlm={str(self.vlm)!r} is no folder; expected one with the VLM's config and tokenizer"
                )
            yield folder
        if self.checkpoint_dir is not None:
            yield self.checkpoint_dir / VLM_FOLDER
        for name in dict.fromkeys((self.name, self.alternative or self.name)):
            yield Path(name).expanduser()
            if self.checkpoint_dir is not None and ".." not in Path(name).parts:
                yield self.checkpoint_dir / name

    def find_local(self, has: Callable[[Path], bool]) -> Path | None:
        """The first folder that has what is wanted."""
        return next((folder for folder in self.folders() if has(folder)), None)

    def find_on_hub(self, name: str, has: Callable[[Path], bool], what: str) -> Path:
        """A hub snapshot that has what is wanted, from the local cache if it is there; CheckpointError otherwise."""
        tried = ", ".join(str(folder) for folder in self.folders())
        problem = "no hub name"
        if HUB_NAME.fullmatch(name):
            for local_only in (True, False):
                try:
                    folder = download(name, allow_patterns=SMALL_FILES, local_files_only=local_only)
                except HubError as error:
                    problem = str(error)
                    continue
                if has(folder):
                    return folder
                problem = f"it has no such file at {folder}"
        raise CheckpointError(
            f"{what} was not found: looked in {tried}, then for {name!r} in the local hub cache and on the hub "
            f"({problem}); give a local folder with the VLM's config and tokenizer by `vlm=` or `--vlm DIR`, "
            "or put it into the checkpoint as `vlm/`"
        )


def _has_config(folder: Path) -> bool:
    return _is_file(folder / "config.json")


def _has_tokenizer(folder: Path) -> bool:
    return _is_file(folder / "tokenizer.json") or (_is_file(folder / "vocab.json") and _is_file(folder / "merges.txt"))


def _is_file(path: Path) -> bool:
    """Whether there is such a file; pathlib's own raises where a name is longer than the system allows."""
    return os.path.isfile(path)  # noqa: PTH113


def _transformers() -> Any:
    # It would advise to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _read_config(directory: Path) -> VLMConfig:
    where = directory / "config.json"
    try:
        parse_json(where.read_text(encoding="utf-8"))
        config = _transformers().AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers checks a config by whatever its code does to it
        raise ConfigError(f"{where}: not a VLM's config that can be read ({type(error).__name__}: {error})") from error
    if config.model_type != "smolvlm":
        raise ConfigError(
            f'{where}: `model_type` must be "smolvlm", found {config.model_type!r}: SmolVLA is built on SmolVLM only'
        )
    text, vision = config.text_config, config.vision_config
    expected = (
        ("text_config", "model_type", text, "llama"),
        ("text_config", "hidden_act", text, "silu"),
        ("text_config", "attention_bias", text, False),
        ("text_config", "mlp_bias", text, False),
        ("vision_config", "hidden_act", vision, "gelu_pytorch_tanh"),
        ("vision_config", "num_channels", vision, 3),
    )
    for section, field, part, wanted in expected:
        found = getattr(part, field, None)
        if found != wanted:
            raise ConfigError(
                f"{where}: `{section}.{field}` must be {wanted!r}, found {found!r}: the network has no other kind"
            )
    vlm = VLMConfig(
        text=TextConfig(**_dimensions(TextConfig, text, f"{where}: `text_config.")),
        vision=VisionConfig(**_dimensions(VisionConfig, vision, f"{where}: `vision_config.")),
        scale_factor=_dimension("scale_factor", config.scale_factor, f"{where}: `"),
    )
    _check_heads(vlm, where)
    return vlm


def _check_heads(vlm: VLMConfig, where: Path) -> None:
    text, vision = vlm.text, vlm.vision
    parts = (
        ("text_config.num_attention_heads", text.num_attention_heads, "num_key_value_heads", text.num_key_value_heads),
        ("text_config.head_dim", text.head_dim, "the halves that are rotated", 2),
        ("vision_config.hidden_size", vision.hidden_size, "num_attention_heads", vision.num_attention_heads),
    )
    for field, size, what, divisor in parts:
        if size % divisor:
            raise ConfigError(f"{where}: `{field}` must be a multiple of {what} ({divisor}), found {size}")


def _dimensions(kind: type, part: Any, where: str) -> dict[str, Any]:
    """The fields of `kind` that a part of a VLM's config holds; ConfigError if one is no size that a network can have."""
    values = {field.name: getattr(part, field.name, None) for field in dataclasses.fields(kind)}
    return {name: v if name.endswith("_eps") else _dimension(name, v, where) for name, v in values.items()}


def _dimension(name: str, value: Any, where: str) -> int:
    largest = _LARGEST.get(name, _LARGEST_WIDTH)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ConfigError(f"{where}{name}` must be a whole number from 1 to {largest}, found {value!r}")
    return value

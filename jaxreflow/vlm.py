"""The VLM that a policy names: its dimensions, its tokenizer, and whether it has weights; never remote code."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxreflow.config import DEFAULT_VLM, PolicyConfig, TextConfig, VisionConfig, VLMConfig
from jaxreflow.errors import CheckpointError, ConfigError, ProcessorError

FAKE_IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN = "<fake_token_around_image>", "<global-img>"
VLM_FOLDER = "vlm"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
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
    policy: PolicyConfig, checkpoint_dir: Path | None, vlm: str | Path | None = None, tokenizer_name: str | None = None
) -> Any:
    """A `transformers` tokenizer: from `vlm`, the checkpoint's `vlm/`, or the processor files' `tokenizer_name`
    (a folder, also one in the checkpoint, or a hub name), else from `vlm_model_name`.

    Raises:
        CheckpointError: it was not found; the message says where it was looked for.
        ProcessorError: its files are damaged or ask for remote code.
    """
    name = tokenizer_name or policy.vlm_model_name
    places = Places(name, checkpoint_dir, vlm, alternative=policy.vlm_model_name)
    directory = places.find_local(_has_tokenizer)
    if directory is None:
        hub_name = name if HUB_NAME.fullmatch(name) else policy.vlm_model_name
        directory = places.find_on_hub(hub_name, _has_tokenizer, "a tokenizer")
    try:
        return _transformers().AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare Exception on a damaged tokenizer.json
        raise ProcessorError(f"{directory}: the tokenizer cannot be read ({type(error).__name__}: {error})") from error


def special_token_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of the tokens around an image and before the global image; -1 where the tokenizer has none."""
    vocabulary = tokenizer.get_vocab()
    return vocabulary.get(FAKE_IMAGE_TOKEN, -1), vocabulary.get(GLOBAL_IMAGE_TOKEN, -1)


def has_weights(vlm_model_name: str) -> bool:
    """Whether LeRobot finds weights under the name: a folder needs safetensors, a hub name counts."""
    path = Path(vlm_model_name)
    if path.is_dir():
        return any(path.glob("*.safetensors"))
    return HUB_NAME.fullmatch(vlm_model_name) is not None


def text_dtype(directory: Path | None) -> np.dtype:
    """The dtype that a VLM's config names for its text model; SmolVLM2's, bfloat16, where it names none."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")) if directory is not None else {}
    text = config.get("text_config", {})
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
            if not Path(self.vlm).is_dir():
                raise CheckpointError(
                    f"vlm={str(self.vlm)!r} is no folder; expected one with the VLM's config and tokenizer"
                )
            yield Path(self.vlm)
        if self.checkpoint_dir is not None:
            yield self.checkpoint_dir / VLM_FOLDER
        for name in dict.fromkeys((self.name, self.alternative or self.name)):
            yield Path(name)
            if self.checkpoint_dir is not None:
                yield self.checkpoint_dir / name

    def find_local(self, has: Callable[[Path], bool]) -> Path | None:
        """The first folder that has what is wanted."""
        return next((folder for folder in self.folders() if has(folder)), None)

    def find_on_hub(self, name: str, has: Callable[[Path], bool], what: str) -> Path:
        """A hub snapshot that has what is wanted, from the local cache if it is there; CheckpointError otherwise."""
        tried = ", ".join(str(folder) for folder in self.folders())
        problem = "no hub name"
        if HUB_NAME.fullmatch(name):
            from huggingface_hub import snapshot_download

            for local_only in (True, False):
                try:
                    folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES, local_files_only=local_only))
                except Exception as error:  # the hub client's errors share no base class with its HTTP library's
                    problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    continue
                if has(folder):
                    return folder
                problem = f"it has no such file at {folder}"
        raise CheckpointError(
            f"{what} was not found: looked in {tried}, then for {name!r} in the local hub cache and on the hub "
            f"({problem}); "
            "give a local folder with the VLM's config and tokenizer by `vlm=` or `--vlm DIR`, or put it into the "
            "checkpoint as `vlm/`"
        )


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def _transformers() -> Any:
    # It would advise to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _read_config(directory: Path) -> VLMConfig:
    where = directory / "config.json"
    try:
        config = _transformers().AutoConfig.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where}: not a VLM's config that can be read ({type(error).__name__}: {error})") from error
    if config.model_type != "smolvlm":
        raise ConfigError(
            f'{where}: `model_type` must be "smolvlm", found {config.model_type!r}: SmolVLA is built on SmolVLM only'
        )
    text, vision = config.text_config, config.vision_config
    expected = (
        ("text_config.model_type", text.model_type, "llama"),
        ("text_config.hidden_act", text.hidden_act, "silu"),
        ("text_config.attention_bias", bool(text.attention_bias), False),
        ("text_config.mlp_bias", bool(text.mlp_bias), False),
        ("vision_config.hidden_act", vision.hidden_act, "gelu_pytorch_tanh"),
        ("vision_config.num_channels", vision.num_channels, 3),
    )
    for field, found, wanted in expected:
        if found != wanted:
            raise ConfigError(f"{where}: `{field}` must be {wanted!r}, found {found!r}: the network has no other kind")
    try:
        return VLMConfig(
            text=TextConfig(**{field.name: getattr(text, field.name) for field in dataclasses.fields(TextConfig)}),
            vision=VisionConfig(
                **{field.name: getattr(vision, field.name) for field in dataclasses.fields(VisionConfig)}
            ),
            scale_factor=config.scale_factor,
        )
    except AttributeError as error:
        raise ConfigError(f"{where}: a dimension is missing: {error}") from error

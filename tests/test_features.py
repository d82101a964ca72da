"""Cached image tokens: what they are made from, an interrupted run, and training from them as from the videos."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from jaxreflow.data import features
from jaxreflow.data.feature_cache import FeatureCache, FeatureManifest, ImageTokens
from jaxreflow.data.feature_match import feature_parts, open_features
from jaxreflow.data.features import compute_features
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.loader import make_loader
from jaxreflow.data.manifests import MANIFEST
from jaxreflow.errors import DatasetError
from jaxreflow.evaluate import __main__ as evaluate
from jaxreflow.model import embed_images, observe
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Context, Observation, Params
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy
from jaxreflow.run import setup
from jaxreflow.run.config import DatasetConfig, FinetuneConfig
from jaxreflow.run.data import held_out_batches, split_data
from jaxreflow.run.record.metrics import read_metrics
from tests.cached_policy import SHARD, make_cached_policy
from tests.lerobot_fixtures import CAMERA, LENGTHS, write_v30
from tests.tiny import WRIST, tiny_model, tiny_observation, tiny_policy

FRAMES = sum(LENGTHS)


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in (setup, evaluate):
        monkeypatch.setattr(program, "use_compilation_cache", lambda: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A dataset, a new policy for it, and the cache of its 18 frames in three shards."""
    return make_cached_policy(tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def checkpoint(made: SimpleNamespace) -> SavedPolicy:
    return load_saved_policy(made.folder / "policy")


def finetune(made: SimpleNamespace, run: Path, *flags: str) -> int:
    data = ["--dataset.root", str(made.root), "--dataset.holdout", "0.3"]
    size = ["--batch-size", "4", "--log-every", "1", "--eval-every", "2", "--eval-batches", "1", "--save-every", "2"]
    policy = ["--policy.path", str(made.folder / "policy")]
    return train.main(["finetune", *policy, *data, *size, "--output-dir", str(run), *flags])


@pytest.mark.slow
def test_observed_tokens_stand_for_images() -> None:
    config, params = tiny_model(tiny_policy(num_vlm_layers=2))
    seen = tiny_observation()

    @jax.jit
    def contexts(params: Params, seen: Observation) -> list[Context]:
        tokens = embed_images(params, seen.images, config=config)
        backwards = dict(reversed(tokens.items()))
        other = dataclasses.replace(seen, images={}, image_tokens=backwards)
        some = dataclasses.replace(seen, image_tokens={WRIST: tokens[WRIST]})
        return [observe(params, each, config=config) for each in (seen, other, some)]

    expected, *found = (jax.tree.leaves(context) for context in contexts(params, seen))
    for leaves in found:
        for leaf, wanted in zip(leaves, expected, strict=True):
            np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-5)


def test_record_is_the_frames_tokens(made: SimpleNamespace, checkpoint: SavedPolicy) -> None:
    image = jnp.asarray(made.dataset.image(9, CAMERA)[None])
    expected = embed_images(checkpoint.load_params(), {CAMERA: image}, config=checkpoint.config)[CAMERA][0]
    found = made.cache[9][CAMERA]
    assert (found.dtype.name, found.shape) == ("bfloat16", expected.shape)
    # bfloat16 keeps 8 bits.
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-8, atol=1e-6)
    assert not np.array_equal(found, made.cache[8][CAMERA])
    with pytest.raises(DatasetError, match="frame 18 of 18 cannot be read"):
        made.cache[FRAMES]


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_killed_run_goes_on_where_it_stopped(
    made: SimpleNamespace, checkpoint: SavedPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(made.config, out=str(tmp_path / "cache"))
    decoded: list[int] = []
    image = LeRobotDataset.image

    def failing(self: LeRobotDataset, index: int, camera: str) -> np.ndarray:
        decoded.append(index)
        if index == SHARD + 6 and decoded.count(0):
            raise KeyboardInterrupt
        return image(self, index, camera)

    monkeypatch.setattr(LeRobotDataset, "image", failing)
    with pytest.raises(KeyboardInterrupt):
        compute_features(config, shard_frames=SHARD)
    assert set(files(tmp_path / "cache")) == {MANIFEST, "shard-00000.arrayrecord"}
    # As SIGKILL leaves it: half a shard under its temporary name.
    (tmp_path / "cache" / ".shard-00001.arrayrecord.tmp").write_bytes(b"half")
    with pytest.raises(DatasetError, match=r"expected 3 shards, found 1 .*jaxreflow\.data\.features .*which goes on"):
        open_features(tmp_path / "cache", checkpoint, made.dataset)
    with pytest.raises(DatasetError, match='dtype: expected "bfloat16", found "float32"'):
        compute_features(dataclasses.replace(config, dtype="bfloat16"), shard_frames=SHARD)
    decoded.clear()
    monkeypatch.setattr(
        LeRobotDataset, "image", lambda self, index, camera: decoded.append(index) or image(self, index, camera)
    )
    compute_features(config, shard_frames=SHARD)
    assert set(decoded) == {0, *range(SHARD, FRAMES)}  # frame 0 for its shape
    assert files(tmp_path / "cache") == files(made.cache.root)


def test_foreign_folder_is_left_alone(made: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="no feature cache"):
        compute_features(dataclasses.replace(made.config, out=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def other_weights(checkpoint: SavedPolicy, *, part: str, folder: Path) -> SavedPolicy:
    """The policy with one bit of one tensor of `part` flipped."""
    out = Path(shutil.copytree(checkpoint.directory, folder / "policy"))
    tensors = checkpoint.tensors
    key = next(key for key in tensors.keys if part in key)
    data = bytearray((out / "model.safetensors").read_bytes())
    data[8 + len(tensors.header) + tensors._infos[tensors.stored_keys[key]]["data_offsets"][0]] ^= 1
    (out / "model.safetensors").write_bytes(data)
    return load_saved_policy(out)


def other_config(checkpoint: SavedPolicy, **changes: object) -> SavedPolicy:
    config: ModelConfig = dataclasses.replace(checkpoint.config, **changes)
    return dataclasses.replace(checkpoint, config=config)


def other_normalization(checkpoint: SavedPolicy) -> SavedPolicy:
    normalizer = checkpoint.processors.normalizer
    stats = {**normalizer.stats, CAMERA: {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}}
    normalizer = dataclasses.replace(normalizer, norm_map={**normalizer.norm_map, "VISUAL": "MEAN_STD"}, stats=stats)
    return dataclasses.replace(checkpoint, processors=dataclasses.replace(checkpoint.processors, normalizer=normalizer))


def other_camera(checkpoint: SavedPolicy) -> SavedPolicy:
    """The same views under another name."""
    inputs = {key.replace("front", "top"): feature for key, feature in checkpoint.policy.input_features.items()}
    policy = dataclasses.replace(checkpoint.policy, input_features=inputs)
    return dataclasses.replace(
        checkpoint,
        policy=policy,
        processors=checkpoint.processors.with_rename_map({CAMERA: CAMERA.replace("front", "top")}),
    )


CHANGES = {
    "weights of the tower": ("weights", lambda c, tmp: other_weights(c, part="vision_model", folder=tmp)),
    "weights of the connector": ("weights", lambda c, tmp: other_weights(c, part="connector", folder=tmp)),
    "resize": ("resize_imgs_with_padding", lambda c, _: other_config(c, resize_imgs_with_padding=(16, 16))),
    "positions": ("vision_positions", lambda c, _: other_config(c, vision_positions="shifted")),
    "scale factor": ("vision_config", lambda c, _: other_config(c, scale_factor=1)),
    "normalization": ("image_normalization", lambda c, _: other_normalization(c)),
    "camera": ("cameras", lambda c, _: other_camera(c)),
    "rename map": (
        "rename_map",
        lambda c, _: dataclasses.replace(c, processors=c.processors.with_rename_map({"state": "observation.state"})),
    ),
}


@pytest.mark.parametrize(("part", "change"), CHANGES.values(), ids=list(CHANGES))
def test_other_policy_is_refused(made: SimpleNamespace, checkpoint: SavedPolicy, part, change, tmp_path: Path) -> None:
    message = rf"{part}: expected .*, found .*python -m jaxreflow\.data\.features {made.root} --policy .* --out "
    with pytest.raises(DatasetError, match=message):
        open_features(made.cache.root, change(checkpoint, tmp_path), made.dataset)


def test_weights_that_make_no_tokens_do_not_matter(
    made: SimpleNamespace, checkpoint: SavedPolicy, tmp_path: Path
) -> None:
    """A student shares its teacher's cache."""
    open_features(made.cache.root, other_weights(checkpoint, part="lm_expert", folder=tmp_path), made.dataset)


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("dataset_info", "meta/info.json"),
        ("dataset_files", "data/chunk-000/file-000.parquet"),
        ("dataset_files", "meta/episodes/chunk-000/file-000.parquet"),
    ],
)
def test_other_dataset_is_refused(
    made: SimpleNamespace, checkpoint: SavedPolicy, part: str, file: str, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(made.root, tmp_path / "data"))
    assert feature_parts(checkpoint, LeRobotDataset.open(root)) == FeatureManifest.read(made.cache.root).parts
    other = LeRobotDataset.open(root)
    with (root / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(DatasetError, match=f"{part}: expected"):
        open_features(made.cache.root, checkpoint, other)


def test_videos_are_part_of_the_dataset(checkpoint: SavedPolicy, tmp_path: Path) -> None:
    dataset = LeRobotDataset.open(write_v30(tmp_path / "data"))
    before = feature_parts(checkpoint, dataset)
    with next(dataset.root.rglob("*.mp4")).open("ab") as stream:
        stream.write(b" ")
    assert feature_parts(checkpoint, dataset)["dataset_files"] != before["dataset_files"]


def test_damaged_manifest_is_named(made: SimpleNamespace, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made.cache.root, tmp_path / "cache"))
    fields = json.loads((root / MANIFEST).read_text())
    fields["parts"]["vision_positions"] = "shifted"
    (root / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(DatasetError, match=r"manifest\.json: expected the manifest .*key: expected"):
        FeatureCache.open(root)


def test_frames_that_nobody_sees_are_not_cached(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--dataset.features", str(made.cache.root), "--dataset.cache-frames", "1")
    assert finetune(made, tmp_path / "run", *both) == 1
    assert "--dataset.features and --dataset.cache-frames exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_examples_come_in_the_same_order(
    made: SimpleNamespace, checkpoint: SavedPolicy, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(dataset=DatasetConfig(holdout=0.3), batch_size=4, eval_batches=2)
    transforms = checkpoint.load_transforms()
    decoding = split_data(made.dataset, checkpoint.policy, transforms, config)
    reading = split_data(made.dataset, checkpoint.policy, transforms, config, ImageTokens(made.cache))
    with monkeypatch.context() as patch:
        expected = batches(decoding.train, 0)
        held_out = list(held_out_batches(decoding, config))
        patch.setattr(LeRobotDataset, "image", None)
        found = batches(reading.train, workers)
        for batch, other in zip(held_out_batches(reading, config), held_out, strict=True):
            np.testing.assert_array_equal(batch.index, other.index)
            assert not batch.observation.images
    for batch, other in zip(found, expected, strict=True):
        for name in ("index", "actions", "state", "tokens"):
            np.testing.assert_array_equal(batch[name], other[name])
        assert not batch["images"]
        for frame, tokens in zip(batch["index"], batch["image_tokens"][CAMERA], strict=True):
            np.testing.assert_array_equal(tokens, made.cache[int(frame)][CAMERA])


def batches(source, workers: int) -> list[dict]:
    loader = make_loader(source, batch_size=4, seed=3, start_example=4, num_workers=workers)
    result = list(itertools.islice(loader, 4))
    loader.close()
    return result


@pytest.mark.slow
def test_training_is_the_same_to_rounding_and_resumes_exactly(made: SimpleNamespace, tmp_path: Path) -> None:
    cached = ["--steps", "4", "--dataset.features", str(made.cache.root)]
    assert finetune(made, tmp_path / "decoding", "--steps", "2") == 0
    assert finetune(made, tmp_path / "reading", *cached) == 0
    expected, found = (losses(tmp_path / run)[:3] for run in ("decoding", "reading"))
    assert len(expected) == 3
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=2e-3)

    resumed = Path(shutil.copytree(tmp_path / "reading", tmp_path / "resumed", symlinks=True))
    shutil.rmtree(resumed / "checkpoints" / "000004")
    (resumed / "checkpoints" / "last").unlink()
    (resumed / "checkpoints" / "last").symlink_to("000002")
    assert finetune(made, resumed, *cached, "--resume") == 0
    assert losses(resumed) == losses(tmp_path / "reading")


def losses(run: Path) -> list[float]:
    return [record[name] for record in read_metrics(run) for name in ("loss", "held_out_loss") if name in record]


def test_trained_tower_is_refused(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = ["--policy.train-expert-only", "False", "--dataset.features", str(made.cache.root), "--steps", "1"]
    assert finetune(made, tmp_path / "connector", *full) == 1
    assert "found connector among the trained parameters" in capsys.readouterr().err
    assert finetune(made, tmp_path / "tower", *full, "--policy.freeze-vision-encoder", "False") == 1
    assert "found vision_model and connector among" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_student_that_sees_differently_is_not_measured_on_the_teachers_tokens(
    made: SimpleNamespace, checkpoint: SavedPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = other_weights(checkpoint, part="connector", folder=tmp_path).directory
    sides = ["--teacher", str(checkpoint.directory), "--student", str(student), "--dataset.root", str(made.root)]
    assert evaluate.main([*sides, "--features", str(made.cache.root), "--out", str(tmp_path / "report")]) == 1
    message = capsys.readouterr().err
    assert f"not the image tokens of {student}: weights: expected" in message
    assert "leave it out" in message
    assert not (tmp_path / "report").exists()


def test_command_line(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(made.root), "--policy", str(made.folder / "policy"), "--out", str(tmp_path / "cache")]
    assert features.main([*command, "--batch-size", "9"]) == 0
    assert "18 frames x" in capsys.readouterr().out
    assert features.main([*command[:-1], str(made.root)]) == 1
    assert "no feature cache" in capsys.readouterr().err

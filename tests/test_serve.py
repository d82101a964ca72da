"""The policy server, asked by openpi's own client, by ours, and by clients that mean harm."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from jaxreflow import SmolVLAPolicy
from jaxreflow.client import PolicyClient
from jaxreflow.client import main as client_main
from jaxreflow.errors import ConfigError, ProcessorError, ServeError
from jaxreflow.policy.statistics import format_tensors
from jaxreflow.serve.__main__ import ServeConfig, main, prepare, serve
from jaxreflow.serve.answers import Answers
from jaxreflow.serve.messages import pack, unpack
from jaxreflow.serve.server import bind
from tests.served import serving
from tests.watched_run import ROOT, compiled_programs

CROSS = Path(__file__).parent / "goldens" / "cross"
TOP, WRIST = "observation.images.top", "observation.images.wrist"
SEED = 3
# websockets 17 warns of what openpi's client 0.1.2 does.
OPENPI_WARNS = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")


@pytest.fixture(scope="module")
def served() -> tuple[Answers, dict[str, Any]]:
    """A policy, compiled, and its metadata."""
    return prepare(ServeConfig(policy=str(CROSS), num_steps=1, repeats=1, seed=SEED))


@pytest.fixture(scope="module")
def policy() -> SmolVLAPolicy:
    """The same policy by itself."""
    return SmolVLAPolicy.from_pretrained(CROSS)


@pytest.fixture
def port(served) -> Iterator[int]:
    """Where the policy is served."""
    with serving(*served) as port:
        yield port


def observation(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {key: rng.integers(0, 256, (*size, 3), np.uint8) for key, size in ((TOP, (24, 40)), (WRIST, (41, 33)))}
    return {**images, "observation.state": rng.normal(size=6).astype("f4"), "task": "open the drawer"}


def key(client: int, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), client), number)


@OPENPI_WARNS
def test_openpis_client_gets_the_policys_chunks(port, policy):
    client = WebsocketClientPolicy(host="127.0.0.1", port=port)
    noise = np.random.default_rng(1).normal(size=(6, 32)).astype(np.float32)
    answer = client.infer({**observation(), "noise": noise})
    assert (answer["actions"].shape, answer["actions"].dtype) == ((6, 6), np.float32)
    np.testing.assert_array_equal(answer["actions"], policy.predict_action_chunk(observation(), noise[None], 1)[0])
    assert list(answer["server_timing"]) == ["infer_ms"]

    told = {key: value for key, value in observation(1).items() if key != "task"} | {"prompt": "open the drawer"}
    answer = client.infer(told)
    np.testing.assert_array_equal(
        answer["actions"], policy.predict_action_chunk(observation(1), num_steps=1, key=key(0, 1))[0]
    )
    assert answer["server_timing"]["prev_total_ms"] > 0

    with pytest.raises(RuntimeError, match=r"`task` is missing"):
        client.infer({TOP: observation()[TOP], "observation.state": np.zeros(6)})
    metadata = client.get_server_metadata()
    assert metadata["observation"] == {TOP: [24, 40, 3], WRIST: [41, 33, 3], "observation.state": [6]}
    assert (metadata["chunk_size"], metadata["action_dim"], metadata["num_steps"]) == (6, 6, 1)
    broker = ActionChunkBroker(client, action_horizon=metadata["n_action_steps"])
    chunk = policy.predict_action_chunk(observation(), num_steps=1, key=key(0, 3))[0]
    for i in range(metadata["n_action_steps"]):
        np.testing.assert_array_equal(broker.infer(observation())["actions"], chunk[i])
    client._ws.close()


def test_our_client_has_the_policys_methods(port, policy, capsys):
    chunk = policy.predict_action_chunk(observation(), num_steps=1, key=key(0, 0))
    with PolicyClient(port=port) as client:
        count = client.metadata["n_action_steps"]
        actions = [client.select_action(observation()) for _ in range(count)]
        np.testing.assert_array_equal(np.stack(actions, axis=1), chunk[:, :count])
        client.select_action(observation())
        client.reset()
        client.select_action(observation())
        batched = {name: value[None] for name, value in observation().items() if name != "task"} | {"task": ["push"]}
        np.testing.assert_array_equal(
            client.predict_action_chunk(batched), policy.predict_action_chunk(batched, None, 1, key(0, 3))
        )
        assert client.timing["infer_ms"] > 0
        with pytest.raises(ProcessorError, match=r"`observation.state`: expected \[6\]"):
            client.predict_action_chunk({**observation(), "observation.state": np.zeros(5)})
        with pytest.raises(ServeError, match=r"cannot be written.*found object"):
            client.predict_action_chunk({"task": object()})
    assert client_main(["--port", str(port), "--requests", "2"]) == 0
    assert "over 2 chunks" in capsys.readouterr().out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert client_main(["--port", str(free.getsockname()[1])]) == 1
    assert "no policy server answers" in capsys.readouterr().err


def test_a_state_alone_goes_on_with_the_images_before(served, port, policy):
    answers, metadata = served
    assert metadata["keep_images"] is True
    state = {"observation.state": np.ones(6, np.float32)}
    with PolicyClient(port=port) as client, PolicyClient(port=port) as other:
        with pytest.raises(ProcessorError, match=r"`keep_images`: expected images in this request"):
            client.predict_action_chunk(state, keep_images=True)
        first = client.predict_action_chunk(observation(1), keep_images=True)
        np.testing.assert_allclose(first, policy.predict_action_chunk(observation(1), None, 1, key(0, 1)), atol=1e-5)
        later = client.predict_action_chunk(state, keep_images=True)
        expected = policy.predict_action_chunk({**observation(1), **state}, None, 1, key(0, 2))
        np.testing.assert_allclose(later, expected, atol=1e-5)
        # Another connection has its own images, another task its own context, and images are kept on request only.
        with pytest.raises(ProcessorError, match="none of this connection are kept"):
            other.predict_action_chunk(state, keep_images=True)
        with pytest.raises(
            ProcessorError, match=r"`task`: expected 'open the drawer', which the kept images.*found 'push'"
        ):
            client.predict_action_chunk({**state, "prompt": "push"}, keep_images=True)
        two = {"observation.state": np.ones((2, 6), np.float32)}
        with pytest.raises(ProcessorError, match=r"`observation.state`: expected one robot's state, found 2"):
            client.predict_action_chunk(two, keep_images=True)
        # A refused request changes nothing.
        with pytest.raises(ProcessorError, match=r"`observation.state`: not finite"):
            client.predict_action_chunk({**observation(2), "observation.state": np.full(6, np.nan)}, keep_images=True)
        later = client.predict_action_chunk({**state, "keep_images": np.True_})
        expected = policy.predict_action_chunk({**observation(1), **state}, None, 1, key(0, 6))
        np.testing.assert_allclose(later, expected, atol=1e-5)
        with pytest.raises(ProcessorError, match="expected the cameras"):
            client.predict_action_chunk({**state, "task": "open the drawer"})
        with pytest.raises(ProcessorError, match=r"`keep_images`: expected true or false, found 1"):
            client.predict_action_chunk({**observation(), "keep_images": 1})
    for number in range(20):
        answers({**observation(), "keep_images": True}, 100 + number, 0)
    assert list(answers._kept)[-16:] == list(range(104, 120))
    assert len(answers._kept) == 16
    answers.leave(119)
    assert 119 not in answers._kept


def test_statistics_of_a_file_replace_the_policys_own(policy, tmp_path, capsys):
    own = policy.checkpoint.processors.normalizer.stats
    file, action = tmp_path / "stats.safetensors", own["action"]
    file.write_bytes(format_tensors({**own, "action": {**action, "std": 2 * action["std"]}}))
    answers, _ = prepare(ServeConfig(policy=str(CROSS), num_steps=1, repeats=1, seed=SEED, stats_from=str(file)))
    expected = policy.predict_action_chunk(observation(), num_steps=1, key=key(0, 0))[0]
    # The same normalised actions, in float32.
    found = answers(observation(), 0, 0)
    np.testing.assert_allclose(found - action["mean"], 2 * (expected - action["mean"]), rtol=1e-4, atol=1e-5)
    assert main(["--policy", str(CROSS), "--stats-from", "dataset", "--port", "0"]) == 1
    assert "--stats-from dataset: there is no dataset here" in capsys.readouterr().err


@OPENPI_WARNS
def test_the_examples_of_the_page_run(port, policy):
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    examples = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "port=8000" in block]
    assert len(examples) == 3
    for client, example in enumerate(examples[:2]):
        executed: list[np.ndarray] = []
        given = {"state": observation()["observation.state"], "image": observation()[TOP], "execute": executed.append}
        exec(example.replace("8000", str(port)), given)
        request = {name: value for name, value in observation().items() if name != WRIST}
        chunk = policy.predict_action_chunk(request, num_steps=1, key=key(client, 0))[0]
        np.testing.assert_array_equal(executed, chunk[: len(executed)])
        assert len(executed) == (policy.config.n_action_steps, 1)[client]
        if client == 0:
            given["policy"]._ws.close()
    exec(examples[2].replace("8000", str(port)), given)
    np.testing.assert_allclose(
        given["later"][0], policy.predict_action_chunk(request, None, 1, key(2, 1))[0], atol=1e-5
    )


def test_our_client_needs_no_jax():
    code = "import sys, jaxreflow.client as c; assert not {'jax', 'tyro', 'websockets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ("a text", "expected an observation.*a str"),
        (b"\xc1", "cannot be read as msgpack"),
        (pack([1]), "expected an observation.*a list"),
        (pack({b"task": "x"}), "a dict with other keys"),
        (pack({}), "expected the cameras"),
        (pack({**observation(), "task": 3}), "`task`: expected a string"),
        (pack({**observation(), "observation.state": "zero"}), "`observation.state`: expected numbers"),
        (
            pack({**observation(), "observation.state": [[1], [2, 3]]}),
            "`observation.state`: cannot be read as an array",
        ),
        (pack({**observation(), "observation.state": np.full(6, np.nan)}), "`observation.state`: not finite"),
        (pack({**observation(), TOP: [[1, 2, 3]]}), f"`{TOP}`: expected one picture as an array, found list"),
        (pack({**observation(), TOP: np.zeros((2, 24, 40, 3), "u1")}), f"`{TOP}`: expected one picture.*at a time"),
        (pack({**observation(), TOP: np.zeros((24, 40), "u1")}), f"`{TOP}`: expected a picture"),
        (pack({**observation(), TOP: np.zeros((1, 9000, 3), "u1")}), r"at most 8192.*\[1, 9000, 3\]"),
        (pack({**observation(), "noise": np.zeros((6, 6))}), r"`noise`.*\[1, 6, 32\]"),
        (pack({**observation(), "noise": 0}), "`noise`: expected an array, found int"),
        (pack({**observation(), "noise": np.full((6, 32), np.inf)}), "actions.*not finite"),
        (pack({"x" * 10_000: 1, **{k: v for k, v in observation().items() if k != "observation.state"}}), "is missing"),
    ],
)
def test_a_wrong_request_is_named_and_the_next_one_served(port, request_, error):
    with connect(f"ws://127.0.0.1:{port}") as connection:
        connection.recv()
        connection.send(request_)
        answer = connection.recv()
        assert isinstance(answer, str)
        assert len(answer) <= 2000
        assert re.search(error, answer), answer
        connection.send(pack(observation()))
        assert unpack(connection.recv())["actions"].shape == (6, 6)


def test_forms_of_pictures_are_bounded(served, monkeypatch, caplog):
    answers = Answers(served[0]._policy, num_steps=1, seed=0)
    monkeypatch.setattr("jaxreflow.serve.answers.MOST_FORMS", 2)
    one_camera = {name: value for name, value in observation().items() if name != WRIST}
    for request in (observation(), one_camera, observation()):
        answers(request, 0, 0)
    assert caplog.text.count("another form") == 1
    state = {"observation.state": np.ones(6, np.float32), "keep_images": True}
    with pytest.raises(ProcessorError, match="expected images in this request"):
        answers(state, 0, 0)
    answers({**observation(), "keep_images": True}, 0, 0)
    answers(state, 0, 0)
    assert caplog.text.count("another form") == 1, "no picture is no form of pictures"
    with pytest.raises(ProcessorError, match=r"2 different forms.*20, 20"):
        answers({**one_camera, TOP: np.zeros((20, 20, 3), np.uint8)}, 0, 0)


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"port": 70000}, "--port.*70000"),
        ({"repeats": 0}, "--repeats.*0"),
        ({"max_request": 0}, "--max-request.*0"),
    ],
)
def test_wrong_flags_are_named(flags, error):
    with pytest.raises(ConfigError, match=error):
        ServeConfig(policy="x", **flags)


def test_an_address_in_use_is_named_before_the_policy_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--policy", "nowhere", "--port", str(port)]) == 1
        assert f"--port {port}: cannot listen there (Address already in use)" in capsys.readouterr().err
    with pytest.raises(ServeError, match=r"--host 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_more_than_this_machine_is_warned_of(caplog):
    with pytest.raises(Exception, match="nowhere"):
        serve(ServeConfig(policy="nowhere", host="0.0.0.0", port=0))
    assert "no password" in caplog.text
    caplog.clear()
    with pytest.raises(Exception, match="nowhere"):
        serve(ServeConfig(policy="nowhere", host="localhost", port=0))
    assert not caplog.text


@pytest.mark.slow
def test_sigterm_finishes_the_request_under_way():
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": compiled_programs().name}
    flags = ("--policy", str(CROSS), "--num-steps", "1", "--repeats", "2", "--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "jaxreflow.serve", *flags],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = ""
        while "listening" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert re.search("p50 .* ms, p95 .* ms per chunk at batch 1", said)
        port = int(said.rsplit(":", 1)[1])
        with connect(f"ws://127.0.0.1:{port}") as idle, connect(f"ws://127.0.0.1:{port}") as busy:
            idle.recv()
            busy.recv()
            # Another form, whose program takes a while to compile.
            busy.send(pack({**observation(), TOP: np.zeros((30, 30, 3), np.uint8)}))
            while "another form" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            assert unpack(busy.recv())["actions"].shape == (6, 6)
            for connection in (idle, busy):
                with pytest.raises(ConnectionClosed) as closed:
                    connection.recv()
                assert closed.value.rcvd.code == 1001
        output, rest = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, rest
    assert "stopping; 1 request(s) under way" in rest
    assert "served 1 chunk(s) to 2 client(s), 0 error(s); p50" in output

"""The server's side of the protocol, with a function in the policy's place."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jaxreflow.serve.messages import pack, unpack
from tests.served import health, serving


def test_clients_wait_for_each_other_and_keep_their_own_count():
    active, seen = [0], []

    def predict(request: dict[str, Any], client: int, number: int) -> np.ndarray:
        active[0] += 1
        assert active[0] == 1
        time.sleep(0.01)
        seen.append((client, number))
        active[0] -= 1
        return np.float32([[request["value"]]])

    def ask(value: int, answers: list) -> None:
        with connect(f"ws://127.0.0.1:{port}") as connection:
            connection.recv()
            for i in range(5):
                connection.send(pack({"value": 10 * value + i}))
                answers.append(unpack(connection.recv())["actions"].item())

    with serving(predict, {}) as port:
        answers: tuple[list, list] = ([], [])
        threads = [threading.Thread(target=ask, args=(i, answers[i])) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ([0, 1, 2, 3, 4], [10, 11, 12, 13, 14])
    assert sorted(seen) == [(client, number) for client in range(2) for number in range(5)]


def test_a_slow_chunk_keeps_nobody_waiting_but_for_chunks():
    started, go = threading.Event(), threading.Event()

    def predict(*_: object) -> np.ndarray:
        started.set()
        assert go.wait(10)
        return np.zeros((1, 1), np.float32)

    with serving(predict, {"a": 1}) as port, connect(f"ws://127.0.0.1:{port}") as one:
        one.recv()
        one.send(pack({}))
        assert started.wait(10)
        assert health(port)
        with connect(f"ws://127.0.0.1:{port}") as other:
            assert unpack(other.recv()) == {"a": 1, "connection": 1}
        assert one.ping().wait(10)
        go.set()
        assert "actions" in unpack(one.recv())


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_closes_the_connection_without_telling_where(debug, caplog):
    def predict(*_: object) -> np.ndarray:
        raise RuntimeError("/home/secret")

    with serving(predict, {}, debug=debug) as port, connect(f"ws://127.0.0.1:{port}") as connection:
        connection.recv()
        connection.send(pack({}))
        assert ("Traceback" in (answer := connection.recv())) == ("secret" in answer) == debug
        assert "RuntimeError" in answer
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv()
        assert closed.value.rcvd.code == 1011
    assert "/home/secret" in caplog.text


def test_strangers_are_kept_at_a_distance():
    with serving(lambda *_: np.zeros((1, 1)), {}, max_bytes=1000) as port:
        with pytest.raises(InvalidStatus, match="403"), connect(f"ws://127.0.0.1:{port}", origin="http://a.page"):
            pass
        with connect(f"ws://127.0.0.1:{port}") as connection:
            connection.recv()
            connection.send(bytes(1001))
            with pytest.raises(ConnectionClosed) as closed:
                connection.recv()
            assert closed.value.rcvd.code == 1009
        assert health(port)

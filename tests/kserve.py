"""An inference server of thirty lines: what a client of either server says and hears, answered by a function."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

Model = Callable[[NDArray[Any]], NDArray[np.float32]]
_TYPES = {"FP32": np.float32, "UINT8": np.uint8}


@contextmanager
def serving(name: str, model: Model) -> Iterator[str]:
    """The address of ``model`` under ``name``, in the protocol that both servers speak (KServe, version 2)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == f"/v2/models/{name}/infer"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (fed,) = body["inputs"]
            answer = model(np.array(fed["data"], _TYPES[fed["datatype"]]).reshape(fed["shape"]))
            output = {
                "name": "logits",
                "datatype": "FP32",
                "shape": answer.shape,
                "data": answer.ravel().tolist(),
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"outputs": [output]}).encode())

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v2/models/{name}"
        finally:
            server.shutdown()
            thread.join()

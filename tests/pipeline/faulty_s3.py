"""moto's S3 behind a door that can fail as networks and stores do: cut uploads, lost answers, bodies stored short, 503s."""

import io
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Start = Callable[..., Any]


@dataclass
class Fault:
    """What happens to the next `times` PUTs whose path contains `path`.

    kind: "cut" (the connection breaks in mid-body), "lost" (stored, but the answer never comes), "short" (half of the body is
    stored and the answer says success), "busy" (503), "hang" (no answer until `release` is set).
    """

    kind: str
    path: str
    times: int = 1
    seen: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class FaultyS3:
    """A server on a free port of the loopback; `faults` may be changed while it runs."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.puts: list[str] = []
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """Stop serving."""
        for fault in self.faults:
            fault.release.set()
        self._server.shutdown()

    def _fault(self, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.path in path:
                    fault.times -= 1
                    fault.seen.set()
                    return fault
        return None

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return self._moto(environ, start)  # type: ignore[no-any-return]
        path = environ["PATH_INFO"]
        self.puts.append(path)
        fault = self._fault(path)
        if fault is None:
            return self._moto(environ, start)  # type: ignore[no-any-return]
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if fault.kind == "busy":
            environ["wsgi.input"].read(length)
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code></Error>"]
        if fault.kind == "cut":
            environ["wsgi.input"].read(length // 2)
            environ["werkzeug.socket"].shutdown(2)
            raise ConnectionError("cut by the test")
        if fault.kind == "hang":
            fault.release.wait(120)
            raise ConnectionError("hung by the test")
        if fault.kind == "short":
            body = environ["wsgi.input"].read(length)[: length // 2]
            kept = {key: value for key, value in environ.items() if "CHECKSUM" not in key and "SHA256" not in key}
            return self._moto({**kept, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}, start)  # type: ignore[no-any-return]
        list(self._moto(environ, lambda *_: lambda data: None))
        environ["werkzeug.socket"].shutdown(2)
        raise ConnectionError("answer lost by the test")

"""`lmm-scope engine` as `cuda_bench.py` starts it and asks it over HTTP."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

QUESTION = "What is in the picture?"
# Tokens whose logits are compared, and the feature that is changed.
ANSWER, BASELINE, FEATURE = 5, 9, 7


class Engine:
    """`lmm-scope engine` on a free port."""

    def __init__(self, args, sae):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = args.work / "engine.log"
        command = [args.bin, "engine", "--model", args.checkpoint, "--sae", sae, "--device", args.device, "--dtype",
                   args.dtype, "--listen", f"127.0.0.1:{self.port}"]
        log, env = self.log.open("w"), {"RUST_LOG": "info", **os.environ}
        self.process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT, env=env)

    def wait(self):
        """Until it listens, which it does when everything is loaded."""
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the engine ended: {self.log.read_text()[-600:]}")
            with contextlib.suppress(OSError):
                return self.ask("GET", "/healthz")
            time.sleep(0.05)

    def ask(self, method, path, body=None, kind="application/json"):
        """The answer's body and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, body, {"content-type": kind} if body else {})
            answer = connection.getresponse()
            given = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {given[:500].decode(errors='replace')}")
            return given, answer.headers
        finally:
            connection.close()

    def extract(self, picture, **query):
        """Safetensors, and seconds as the engine counts them."""
        edge = "lmm-scope-bench-7d1f0c"
        head = f'--{edge}\r\ncontent-disposition: form-data; name="image"; filename="picture"\r\n\r\n'
        body = head.encode() + picture + f"\r\n--{edge}--\r\n".encode()
        path = "/api/v1/extract?" + urllib.parse.urlencode(query)
        given, headers = self.ask("POST", path, body, f"multipart/form-data; boundary={edge}")
        return given, float(headers["x-engine"].rsplit("ms=", 1)[1]) / 1e3

    def attribute(self, picture):
        given, _ = self.ask("POST", "/api/v1/attribute", json.dumps({
            "prompt": QUESTION, "image": data_url(picture), "answer_id": ANSWER, "baseline_id": BASELINE,
        }))
        return json.loads(given)

    def steer(self, picture, count):
        """When each token of the text that is not steered came, its ids, and the tokens of all texts."""
        body = json.dumps({
            "prompt": QUESTION, "image": data_url(picture), "n_tokens": count, "steer_method": "CLAMP",
            "features": [{"index": FEATURE, "strength": 20.0}],
        })
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        begun = time.perf_counter()
        connection.request("POST", "/api/v1/steer", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"steer: {answer.status} {answer.read()[:500].decode(errors='replace')}")
        times, ids, total = [], [], 0
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if event["type"] == "failed":
                raise RuntimeError(event["detail"])
            if event["type"] == "token":
                total += 1
                if event["column"] == "DEFAULT":
                    times.append(time.perf_counter() - begun)
                    ids.append(event["token"]["id"])
            if event["type"] == "done":
                break
        connection.close()
        return times, ids, total

    def host_memory(self):
        """GiB at most, and GiB now without mapped files."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        kib = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        return int(kib["VmHWM"]) / 2**20, int(kib["RssAnon"]) / 2**20

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def data_url(picture):
    return "data:image/png;base64," + base64.b64encode(picture).decode()

"""A worker that takes and gives back for some seconds, notes what it has, and may be killed."""

import http.client
import json
import os
import random
import signal
import socket
import sys
import time

name = sys.argv[1] + "-" + os.environ["WORKER_ID"]
choose = random.Random(name)
notes = open(f"notes/{name}", "w", buffering=1)


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["ISOLANE_SOCKET"])


def call(method, path, body=None):
    connection = Connection("isolane")
    connection.request(method, path, body and json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else None


def note(lease, **more):
    # One write, so that a death cuts off a line at most.
    notes.write(json.dumps({"lease": lease["id"], "fence": lease["fence"], **more}) + "\n")


wishes = [
    [{"pool": "line"}],
    [{"pool": "line"}],
    [{"pool": "acct", "count": 2}],
    [{"pool": "acct", "where": {"tier": "gold"}}],
    [{"pool": "one"}, {"pool": "acct"}],
    [{"pool": "one"}],
]
end = time.monotonic() + 3
while time.monotonic() < end:
    wish = {"want": choose.choice(wishes), "wait": choose.choice(["0s", "100ms", "2s", "5s"])}
    ttl = choose.choice([None, None, 0.05, 0.3, 60])
    if ttl:
        wish["ttl"] = ttl
    asked = time.monotonic()
    status, lease = call("POST", "/v1/leases", wish)
    if status != 201:
        assert status == 409, (status, lease)
        time.sleep(0.01)
        continue
    # What is renewed for it lasts as long as it lives.
    note(lease, has=time.monotonic(), until=asked + (ttl or 3600))
    time.sleep(choose.choice([0, 0.005, 0.03, 0.1]))
    if choose.random() < 0.02:
        note(lease, lets_go=time.monotonic())
        os.kill(os.getpid(), signal.SIGKILL)
    if choose.random() < 0.1:
        # It forgets that it has it: its time or its end frees it.
        note(lease, lets_go=time.monotonic())
        if ttl and ttl < 1:
            continue
    note(lease, lets_go=time.monotonic())
    status, answer = call("DELETE", f"/v1/leases/{lease['id']}?fence={lease['fence']}")
    assert status in (204, 410), (status, answer)

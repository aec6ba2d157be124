"""A worker that takes and gives back for some seconds, notes what it has, and may be killed.

    worker.py NAME            of a run; whatever does not answer is an error
    worker.py NAME DOOR...    a careful one: each ask has a key, and is made again, at the next door,
                              until it is answered; a door is a URL, or `socket` for that of its run
"""

import http.client
import json
import os
import random
import signal
import socket
import sys
import time

name = sys.argv[1] + "-" + os.environ.get("WORKER_ID", "client")
doors = sys.argv[2:] or ["socket"]
is_careful = len(sys.argv) > 2
# How long a lease lasts that has no time of its own, and whose holder is alive. Of a service that
# may be away just then, nobody is heard to be alive.
KEPT = 2 if is_careful else 3600
PATIENCE = 60
choose = random.Random(name)
notes = open(f"notes/{name}", "w", buffering=1)


class Socket(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.environ["ISOLANE_SOCKET"])


def call_at(door, method, path, body, timeout):
    if door == "socket":
        connection, headers = Socket("isolane", timeout=timeout), {}
    else:
        connection = http.client.HTTPConnection(door.removeprefix("http://"), timeout=timeout)
        headers = {"Authorization": "Bearer " + os.environ["ISOLANE_TOKEN"]}
    try:
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


def call(method, path, body=None, timeout=PATIENCE):
    until = time.monotonic() + PATIENCE
    while True:
        try:
            status, answer = call_at(doors[0], method, path, body, timeout)
            why = answer
        except (OSError, http.client.HTTPException) as error:
            status, why = None, error
        # A place in the line that was taken from it is asked for again as well.
        is_answer = status not in (None, 503) and not (method == "POST" and status == 410 and path == "/v1/leases")
        if is_answer:
            return status, answer
        assert is_careful and time.monotonic() < until, (method, path, status, why)
        doors.append(doors.pop(0))
        timeout = PATIENCE
        time.sleep(0.01)


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
choose.shuffle(doors)
end = time.monotonic() + 3
number = 0
while time.monotonic() < end:
    wish = {"want": choose.choice(wishes), "wait": choose.choice(["0s", "100ms", "2s", "5s"])}
    ttl = choose.choice([None, None, 0.05, 0.3, 2 if is_careful else 60])
    if doors != ["socket"]:
        # Nobody hears of such a one's end.
        ttl = ttl or 2
    if ttl:
        wish["ttl"] = ttl
    timeout = PATIENCE
    if is_careful:
        number += 1
        wish["key"] = f"{name}-{number}"
        # Now and then it does not wait for the answer, and asks again at the next door.
        timeout = choose.choice([PATIENCE] * 9 + [0.03])
    asked = time.monotonic()
    status, lease = call("POST", "/v1/leases", wish, timeout)
    if status != 201:
        assert status == 409, (status, lease)
        time.sleep(0.01)
        continue
    # What is renewed for it lasts as long as it lives.
    note(lease, has=time.monotonic(), until=asked + (ttl or KEPT))
    path = f"/v1/leases/{lease['id']}"
    time.sleep(choose.choice([0, 0.005, 0.03, 0.1]))
    if choose.random() < 0.1 and ttl:
        asked = time.monotonic()
        status, answer = call("POST", path + "/renew", {"fence": lease["fence"], "ttl": max(ttl, 0.3)})
        if status == 200:
            note(lease, until=asked + max(ttl, 0.3))
        else:
            assert status == 410, (status, answer)
            note(lease, lost=time.monotonic())
            continue
    if choose.random() < 0.02:
        note(lease, lets_go=time.monotonic())
        os.kill(os.getpid(), signal.SIGKILL)
    if choose.random() < 0.1:
        # It forgets that it has it: its time or its end frees it.
        note(lease, lets_go=time.monotonic())
        if ttl and ttl < 1:
            continue
    note(lease, lets_go=time.monotonic())
    status, answer = call("DELETE", f"{path}?fence={lease['fence']}")
    assert status in (204, 410), (status, answer)
    note(lease, **{"lost" if status == 410 else "released": time.monotonic()})

"""The pytest plugin of isolane: gives every xdist worker its lane, and tells the run
which worker is in which test.

`isolane run` puts this file on PYTHONPATH; nothing has to be installed and nothing in
a suite changes. Outside of a run it does nothing, except for the fixture `isolane`,
which then skips with a reason. It depends on the standard library only.

It must never break a suite: what it cannot tell the run is lost, and only a worker
without a lane is an error, because it would work in somebody else's.
"""

import json
import os

# By name: a test may replace what is in these modules.
from socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket
from threading import local
from time import time
from urllib.parse import quote

import pytest

MODULE = "isolane_pytest"
# In characters; the ledger keeps no more.
MESSAGE_LENGTH = 4000
SOCKET = os.environ.get("ISOLANE_SOCKET")
WORKER = os.environ.get("WORKER_ID", "master")
WORKER_JSON = json.dumps(WORKER)
LANE = os.environ.get("ISOLANE_LANE")
# Set by the controller in the environment of its own workers only; a pytest that a
# test starts inherits PYTEST_XDIST_WORKER as well, and is no worker.
IS_WORKER = os.environ.pop("ISOLANE_XDIST_PARENT", None) == str(os.getppid())
# The lane's addresses, as they were before anything of the user's was imported.
ADDRESSES = {
    name: os.environ[name]
    for name in os.environ.get("ISOLANE_URL_VARIABLES", "").split(",")
    if name in os.environ
}
# Whether rows are watched, so that there is something to know of a failure.
WATCHED = os.environ.get("ISOLANE_WATCHED") == "1"
# Whether the lane is put back before each test.
FRESH = os.environ.get("ISOLANE_FRESH") == "test"
# Nobody named a database: an address that the suite brings itself is not overruled.
EMBEDDED = os.environ.get("ISOLANE_EMBEDDED") == "1"


def _leave_no_trace():
    """A pytest that is started by a test is that test's own business: take the plugin
    out of the environment that it inherits. What workers need is given back to them
    (see `pytest_configure_node`). Returns what was taken."""
    taken = {}
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.environ.get("PYTHONPATH")
    if path is not None and path.split(os.pathsep)[0] == here:
        rest = path.split(os.pathsep, 1)[1:]
        if rest:
            os.environ["PYTHONPATH"] = rest[0]
        else:
            del os.environ["PYTHONPATH"]
    plugins = os.environ.get("PYTEST_PLUGINS")
    if plugins is not None and MODULE in plugins.split(","):
        taken["PYTEST_PLUGINS"] = plugins
        rest = ",".join(name for name in plugins.split(",") if name != MODULE)
        if rest:
            os.environ["PYTEST_PLUGINS"] = rest
        else:
            del os.environ["PYTEST_PLUGINS"]
    return taken


TAKEN = _leave_no_trace() if SOCKET else {}


def _connect():
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.connect(SOCKET)
    return connection


def _post(path, body):
    """One request; the answer's JSON, or None. Raises OSError with the run's own words."""
    data = json.dumps(body).encode()
    head = (
        "POST %s HTTP/1.1\r\nHost: isolane\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (quote(path), len(data))
    )
    with _connect() as connection:
        connection.sendall(head.encode() + data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(None, 2)[1])
    document = json.loads(body) if body else None
    if status >= 300:
        raise OSError((document or {}).get("detail", "status %d" % status))
    return document


class _Story:
    """The worker's events, one JSON document a line, on one connection that stays open
    as long as the worker lives. Nothing is waited for: what was sent before a worker
    dies is in the kernel's hands and arrives."""

    def __init__(self):
        self.pending = []
        self.connection = None
        self.lost = False

    def tell(self, event, **details):
        details["event"] = event
        self.pending.append(json.dumps(details))

    def send(self):
        if self.lost or not self.pending:
            return
        data = ("\n".join(self.pending) + "\n").encode()
        self.pending.clear()
        try:
            if self.connection is None:
                self.connection = _connect()
                data = (
                    b"POST /v1/tests HTTP/1.1\r\nHost: isolane\r\n"
                    b"Connection: upgrade\r\nUpgrade: isolane-story\r\n\r\n" + data
                )
            self.connection.sendall(data)
        except OSError:
            self.lost = True

    def end(self):
        """Sends what is left and waits until the run has read it all."""
        self.send()
        if self.connection is not None and not self.lost:
            try:
                self.connection.shutdown(SHUT_WR)
                self.connection.settimeout(10)
                while self.connection.recv(4096):
                    pass
            except OSError:
                pass
            self.connection.close()
        self.connection = None


class _Door:
    """Requests that a test waits for, on one connection that stays open."""

    def __init__(self):
        self.connection = None

    def post(self, path, body):
        """Raises OSError with the run's own words."""
        status, answer = self.call("POST", path, body)
        if status >= 300:
            raise OSError((answer or {}).get("detail", "status %d" % status))

    def call(self, method, path, body):
        """The answer's status and JSON. Raises OSError where there is none."""
        data = json.dumps(body).encode()
        head = (
            "%s %s HTTP/1.1\r\nHost: isolane\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (method, quote(path), len(data))
        )
        if self.connection is None:
            self.connection = _connect()
        try:
            self.connection.sendall(head.encode() + data)
            status, answer = self.read()
        except (OSError, ValueError) as error:
            self.connection.close()
            self.connection = None
            raise OSError("the run does not answer (%s)" % error)
        return status, json.loads(answer) if answer else None

    def read(self):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.more()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
        while len(body) < length:
            body += self.more()
        return int(lines[0].split(None, 2)[1]), body

    def more(self):
        data = self.connection.recv(65536)
        if not data:
            raise OSError("it closed the connection")
        return data


def _lease(worker, expect=None):
    try:
        return _post("/v1/lanes", {"worker": worker, "expect": expect})["environment"]
    except OSError as error:
        raise pytest.UsageError("isolane: %s got no lane: %s" % (worker, error))


class Plugin:
    """The hooks of the one session that this process was started for."""

    def __init__(self, config):
        self.config = config
        self.story = _Story()
        self.outcomes = {}
        self.is_controller = False
        self.fixtures = {}
        self.next_fixture = 0
        self.door = _Door()
        self.stale = None

    # Addresses -------------------------------------------------------------------

    def guard_addresses(self, restore):
        """Plugins such as pytest-env and pytest-dotenv set variables when a session
        starts, and may put the shared address over the lane's."""
        for name, lane in ADDRESSES.items():
            found = os.environ.get(name)
            if found == lane:
                continue
            if EMBEDDED:
                self.notice(
                    "the suite sets %s by itself, so its workers share that database; "
                    "`isolane run --database-url` with the same address separates them" % name
                )
            elif restore:
                os.environ[name] = lane
                self.notice("a plugin or setting of the suite replaced %s; isolane put the lane's back" % name)
            else:
                self.notice(
                    "a conftest.py or plugin of the suite replaced %s; "
                    "what reads it from then on is not in its lane" % name
                )

    def notice(self, text):
        self.story.tell("notice", text=text)

    # The controller: a lane for each worker ----------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, config, specs):
        self.is_controller = True
        self.expected = len(specs)
        self.story.tell("hello", worker=WORKER, role="controller")
        self.story.send()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node):
        # The worker's interpreter is up and has imported nothing of the user's yet. A
        # replacement comes this way too, with a name of its own.
        if not node.gateway.spec.popen:
            self.notice("%s runs on another machine and has no lane" % node.gateway.id)
            return
        environment = dict(_lease(node.gateway.id, self.expected), **TAKEN)
        environment["ISOLANE_XDIST_PARENT"] = str(os.getpid())
        environment["ISOLANE_IN_TEST"] = "1"
        node.gateway.remote_exec("import os; os.environ.update(%r)" % environment).waitclose()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        # Told and answered before xdist starts a replacement, which must not be given
        # the dead worker's lane before that is clean.
        if error and node.gateway.spec.popen:
            try:
                _post("/v1/tests", {"event": "lost", "worker": node.gateway.id})
            except OSError:
                pass

    # Tests --------------------------------------------------------------------------

    def pytest_sessionstart(self):
        self.guard_addresses(restore=False)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        if FRESH and not self.is_controller:
            self.freshen()
        self.begin(_test_id(item))
        self.story.send()
        yield
        self.end()
        # Otherwise it goes with the beginning of the next one: one message a test.
        if nextitem is None:
            self.story.send()

    def freshen(self):
        """The lane as its template again, before the test begins and after the last one ended."""
        self.stale = None
        try:
            self.story.send()
            self.door.post("/v1/renewals", {"worker": WORKER})
        except OSError as error:
            self.stale = str(error)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self):
        if self.stale is not None:
            pytest.fail("isolane: the lane could not be put back for this test: %s" % self.stale, pytrace=False)

    # Written out by hand: these two are all that a test costs.

    def begin(self, test):
        self.test = json.dumps(_readable(test))
        # Without a report, as when Ctrl-C ends it, nobody can tell how it came out.
        self.outcomes = {"rank": -1, "outcome": None, "message": None}
        self.story.pending.append(
            '{"event":"begin","worker":%s,"test":%s,"at":%.6f}' % (WORKER_JSON, self.test, time())
        )

    def end(self):
        message = self.outcomes["message"]
        self.story.pending.append(
            '{"event":"end","worker":%s,"test":%s,"outcome":%s,"message":%s,"at":%.6f}'
            % (
                WORKER_JSON,
                self.test,
                json.dumps(self.outcomes["outcome"]),
                "null" if message is None else json.dumps(message),
                time(),
            )
        )

    # Fixtures that live longer than a test: what they write is theirs, not the test's that
    # happens to be the first or the last to use them.

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.scope == "function":
            yield
            return
        node = getattr(request.node, "nodeid", "")
        name = "%s fixture %s" % (fixturedef.scope, fixturedef.argname) + (" of %s" % node if node else "")
        self.next_fixture += 1
        told = (self.next_fixture, _readable(name), fixturedef.scope)
        self.fixtures[id(fixturedef)] = told
        self.fixture(told, "begin")
        outcome = yield
        self.fixture(told, "ready")
        if outcome.excinfo is None:
            # The last finalizer is the first to run.
            fixturedef.addfinalizer(lambda: self.fixture(told, "leaving"))

    def pytest_fixture_post_finalizer(self, fixturedef):
        told = self.fixtures.pop(id(fixturedef), None)
        if told is not None:
            self.fixture(told, "end")

    def fixture(self, told, phase):
        key, name, scope = told
        self.story.tell(
            "fixture", worker=WORKER, key=key, fixture=name, scope=scope, phase=phase, at=round(time(), 6)
        )
        self.story.send()

    # What the run knows of the rows that a failure is about -------------------------

    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        report = outcome.get_result()
        if not report.failed or call.excinfo is None or self.is_controller or not WATCHED:
            return
        try:
            self.story.send()
            known = _post(
                "/v1/failures",
                {
                    "worker": WORKER,
                    "test": _readable(_test_id(item)),
                    "error": _readable(_whole_error(call.excinfo.value)),
                    "at": time(),
                },
            )
            if known and known["story"]:
                report.sections.append(("isolane", known["story"]))
        except Exception:
            # A report without it is as good as any other.
            pass

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report):
        if self.is_controller or not self.outcomes:
            return
        if report.outcome == "rerun":
            # pytest-rerunfailures repeats a test within one run of its protocol.
            self.outcomes.update(outcome="failed", message=_message(report))
            self.end()
            self.begin(json.loads(self.test))
            return
        outcome = _outcome(report)
        if outcome is None:
            return
        rank, word = outcome
        # Of setup, call and teardown the worst counts.
        if rank > self.outcomes["rank"]:
            self.outcomes.update(rank=rank, outcome=word, message=_message(report))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self):
        # Before xdist tells the controller, which may end the process right after.
        if not self.is_controller:
            self.story.tell("goodbye", worker=WORKER)
            self.story.send()

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self):
        self.story.end()


def _test_id(item):
    """The id as pytest takes it back: for `--dist loadgroup`, xdist hangs the group on."""
    test = item.nodeid
    if IS_WORKER and getattr(item.config.option, "loadgroup", False) and item.get_closest_marker("xdist_group"):
        test = test.rsplit("@", 1)[0]
    return test


def _outcome(report):
    """How bad a report is, and the word for it; None for one that decides nothing."""
    expected = hasattr(report, "wasxfail")
    if report.outcome == "failed":
        return (3, "failed") if report.when == "call" else (4, "error")
    if report.outcome == "skipped":
        return (2, "xfailed") if expected else (1, "skipped")
    if report.when == "call":
        return (1, "xpassed") if expected else (0, "passed")
    return None


def _whole_error(error):
    """The text of an exception and of those behind it: libraries wrap the server's."""
    texts = []
    while error is not None and len(texts) < 10:
        diag = getattr(error, "diag", None)
        constraint = getattr(diag, "constraint_name", None)
        if constraint:
            texts.append('constraint "%s"' % constraint)
        texts.append(str(error)[:MESSAGE_LENGTH])
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


def _message(report):
    if report.outcome not in ("failed", "rerun"):
        return None
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    return _readable(message[:MESSAGE_LENGTH])


def _readable(text):
    """The text with a question mark for what is no character, such as a byte of a file's
    name that `os.fsdecode` had to carry along."""
    return text.encode("utf-8", "replace").decode("utf-8")


_plugin = None


def pytest_load_initial_conftests(early_config):
    # Behind those that set variables (they come first of all), and before pytest imports
    # the first conftest.py: that is the last implementation, so this must not be.
    if _adopt(early_config):
        _plugin.guard_addresses(restore=True)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    _adopt(config)


def _adopt(config):
    """Watches the first session of this process; a session within it is a test's own."""
    global _plugin
    if SOCKET is None or _plugin is not None:
        return False
    _plugin = Plugin(config)
    config.pluginmanager.register(_plugin, "isolane")
    role = "worker" if IS_WORKER else "alone"
    lane = int(LANE) if LANE and LANE.isdigit() else None
    _plugin.story.tell("hello", worker=WORKER, role=role, lane=lane)
    _plugin.story.send()
    return True


class LeaseError(Exception):
    """What was asked for was refused; `problem` is what the run said, with its `code`."""

    def __init__(self, problem):
        super().__init__(problem.get("detail"))
        self.problem = problem
        self.code = problem.get("code")


class PoolExhausted(LeaseError):
    """All that would do is held, or was for as long as this waited: `holders` says by whom."""

    @property
    def holders(self):
        return self.problem.get("holders", [])


class LeaseLost(LeaseError):
    """The lease has ended, and not by its holder: by time, or because somebody took it."""


_REFUSALS = {"exhausted": PoolExhausted, "lease-deadlock": PoolExhausted, "lease-lost": LeaseLost}


def _lease_call(door, method, path, body):
    status, answer = door.call(method, path, body)
    if status >= 300:
        problem = answer or {"detail": "status %d" % status}
        raise _REFUSALS.get(problem.get("code"), LeaseError)(problem)
    return answer


class Lease:
    """Items that are this test's until it ends, or until the block of `with` does. `items` is a
    list of dicts; of a single item, `lease["id"]` is short for `lease.items[0]["id"]`."""

    def __init__(self, door, answer):
        self._door = door
        self._is_over = False
        self._take(answer)

    def _take(self, answer):
        self.id = answer["id"]
        self.fence = answer["fence"]
        self.items = answer["items"]
        self.expires_at = answer["expires_at"]

    @property
    def item(self):
        return self.items[0]

    def __getitem__(self, name):
        return self.items[0][name]

    def renew(self, ttl=None):
        """For as long again. Raises LeaseLost where it has ended."""
        body = {"fence": self.fence, "ttl": ttl}
        self._take(_lease_call(self._door, "POST", "/v1/leases/%s/renew" % self.id, body))

    def check(self):
        """Raises LeaseLost where the lease has ended."""
        _lease_call(self._door, "GET", "/v1/leases/%s" % self.id, {})

    def release(self):
        """Gives the items back; a second time, it is nothing. Raises LeaseLost where the lease had
        ended before."""
        if self._is_over:
            return
        self._is_over = True
        _lease_call(self._door, "DELETE", "/v1/leases/%s" % self.id, {"fence": self.fence})

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.release()
            return
        try:
            self.release()
        except (LeaseLost, OSError):
            # The test has failed already, and that is what is to be read.
            pass


class Isolane:
    """What a test can know of its lane."""

    PoolExhausted = PoolExhausted
    LeaseLost = LeaseLost
    LeaseError = LeaseError

    def __init__(self, test):
        self._test = test
        self._leases = []
        self.run_id = os.environ.get("ISOLANE_RUN_ID")
        self.worker_id = WORKER
        self.lane = int(LANE) if LANE and LANE.isdigit() else None
        self.prefix = os.environ.get("ISOLANE_PREFIX")
        self.schema = os.environ.get("ISOLANE_SCHEMA")
        self.database_url = next(iter(ADDRESSES.values()), os.environ.get("DATABASE_URL"))

    def record(self, kind, key):
        """Registers a thing that this test has made outside of its lane, such as a
        customer in an API: it is removed by `[cleaner.KIND]` of isolane.toml at the
        end of the run, whatever happens."""
        _post("/v1/records", {"worker": WORKER, "test": self._test, "kind": str(kind), "key": str(key)})

    def lease(self, pool, count=1, ttl=None, wait="30s", key=None, **attributes):
        """Leases items of a pool that nobody else has meanwhile, and waits for them if need be:
        `isolane.lease("premium_user", tier="gold")`. A value may be a list of those that will do, or
        a dict such as {"ge": 18}. What is not released in the test is released at its end. Raises
        PoolExhausted, with who holds them, where they do not come free in time."""
        return self.lease_all([{"pool": pool, "count": count, "where": attributes}], ttl=ttl, wait=wait, key=key)

    def lease_all(self, want, ttl=None, wait="30s", key=None):
        """Leases items of several pools, all or none: `want` is a list of dicts with `pool`,
        `count` and `where`."""
        body = {"want": want, "ttl": ttl, "wait": wait, "key": key, "worker": WORKER, "test": self._test}
        lease = Lease(_door(), _lease_call(_door(), "POST", "/v1/leases", body))
        self._leases.append(lease)
        return lease

    def _end(self):
        """Releases what the test has left, the last first. A lease that had ended before says so."""
        lost = None
        while self._leases:
            try:
                self._leases.pop().release()
            except LeaseLost as error:
                lost = error
        if lost is not None:
            raise lost


_doors = local()


def _door():
    """A connection of this thread's own."""
    if not hasattr(_doors, "door") or _doors.process != os.getpid():
        _doors.door, _doors.process = _Door(), os.getpid()
    return _doors.door


@pytest.fixture
def isolane(request):
    """The lane of this test's worker: run_id, worker_id, lane, prefix, schema,
    database_url, record(kind, key) and lease(pool, …)."""
    if SOCKET is None:
        pytest.skip("not inside of `isolane run`")
    its = Isolane(_readable(_test_id(request.node)))
    yield its
    its._end()

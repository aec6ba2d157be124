"use strict";
// What the ledger says, unpacked: `data.rs` packs it. Nothing of it ever becomes markup:
// all texts go through `textContent`.

const raw = JSON.parse(document.getElementById("data").textContent);
const word = (place) => (place == null ? null : raw.words[place]);
const run = raw.run;
const endOfRun = run.ended_at ? Date.parse(run.ended_at) * 1000 - raw.base : raw.now;

const byNumber = new Map();
const tests = raw.tests.map(([number, worker, id, attempt, scope, began, ended, outcome, message]) => {
  const test = {
    number, id, began, message, worker: word(worker), attempt: attempt ?? null, scope: word(scope),
    isOpen: ended == null, ended: ended ?? Math.max(endOfRun, began), outcome: word(outcome), meetings: [],
  };
  byNumber.set(number, test);
  return test;
});

// A worker is a row of the timeline, in the order of lanes.
const workers = new Map();
for (const [name, lane, pid, began, ended, outcome] of raw.workers) {
  const known = workers.get(word(name));
  if (known) Object.assign(known, { ended, outcome: word(outcome) });
  else workers.set(word(name), { name: word(name), lane, pid, began, ended, outcome: word(outcome), tests: [], fixtures: [] });
}
for (const test of tests) {
  let worker = workers.get(test.worker);
  if (!worker) workers.set(test.worker, (worker = { name: test.worker, lane: null, tests: [], fixtures: [] }));
  (test.scope ? worker.fixtures : worker.tests).push(test);
}
const rows = [...workers.values()];
rows.forEach((worker, row) => {
  worker.row = row;
  worker.tests.sort((a, b) => a.began - b.began);
  // Until when this test or one before it was running, for those that overlap in one worker.
  let reach = -Infinity;
  for (const test of worker.tests) test.reach = reach = Math.max(reach, test.ended);
});

const side = (worker, test, op, at) => ({ worker: word(worker), test: byNumber.get(test) ?? null, op: word(op), at: at ?? null });
const collisions = raw.collisions.map(([kind, key, pattern, wa, ta, opA, atA, wb, tb, opB, atB, overlap, failed], number) => {
  const collision = {
    number, key, kind: word(kind), pattern: word(pattern), overlap: overlap ?? 0,
    a: side(wa, ta, opA, atA), b: side(wb, tb, opB, atB), failed: byNumber.get(failed) ?? null,
  };
  collision.a.test?.meetings.push(collision);
  if (collision.b.test !== collision.a.test) collision.b.test?.meetings.push(collision);
  return collision;
});

// The views name tests by worker and id; the last attempt is meant.
const byName = new Map();
for (const test of tests) byName.set(`${test.worker}\0${test.id}`, test);
const named = (worker, id) => (id == null ? null : (byName.get(`${worker}\0${id}`) ?? null));

const leaks = raw.leaks.map(([worker, id, kind, n]) => ({ worker: word(worker), id, kind: word(kind), n, test: named(word(worker), id) }));
const records = raw.records.map(([worker, id, kind, key, at, source, state]) => ({
  worker: word(worker), id: id ?? null, kind: word(kind), key, at, source: word(source), state: word(state), test: named(word(worker), id),
}));
const left = raw.left.map(([worker, provider, kind, name, state, at, error]) => ({
  worker: word(worker), provider, kind: word(kind), name, state: word(state), at, error: error ?? null,
}));

// How an outcome looks: a group has a colour, and a sign for whoever does not see colours.
const GROUPS = ["good", "skip", "unknown", "bad", "error", "crashed"];
const SIGNS = { good: "✓", skip: "–", unknown: "?", bad: "✗", error: "!", crashed: "†" };
const OUTCOMES = { passed: "good", xpassed: "good", skipped: "skip", xfailed: "skip", error: "error", crashed: "crashed" };
const group = (test) => (test.outcome == null ? "unknown" : (OUTCOMES[test.outcome] ?? "bad"));
const rank = (test) => GROUPS.indexOf(group(test));
const outcomeOf = (test) => test.outcome ?? (test.isOpen ? "running" : "outcome unknown");

const PATTERNS = {
  clobber: "A row was changed or removed while the test that had made it was running.",
  pollution: "A row was changed or removed after the test that had made it had ended and left it.",
  "hot-row": "Both workers wrote a row that neither of them had made.",
  "duplicate-key": "A test failed over a unique key that the other worker had written.",
  "foreign-key": "A test failed over a foreign key whose other end the other worker had written.",
  broad: "A table was emptied, or one statement went over rows of several other workers.",
  escape: "A worker wrote where its lane has no business.",
  deadlock: "Both waited for one another, and the server ended one of them.",
};

// Words for people.
const figure = new Intl.NumberFormat("en");
const count = (n, one) => `${figure.format(n)} ${n === 1 ? one : one + "s"}`;
function duration(us) {
  if (us == null) return "";
  if (us < 1000) return `${us} µs`;
  if (us < 1e6) return `${(us / 1e3).toPrecision(us < 1e4 ? 2 : 3)} ms`;
  if (us < 6e7) return `${(us / 1e6).toFixed(2)} s`;
  const seconds = Math.round(us / 1e6), minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
const since = (us) => (us == null ? "" : `+${(us / 1e6).toFixed(3)} s`);
const clock = (us) => (us == null ? "" : new Date((raw.base + us) / 1000).toISOString().slice(11, 23) + " UTC");
const nameOf = (id) => {
  const plain = id.indexOf("[") > 0 ? id.slice(0, id.indexOf("[")) : id;
  const at = Math.max(plain.lastIndexOf("::") + 2, id.indexOf("$") + 1);
  return at > 1 || id[0] === "$" ? [id.slice(0, at), id.slice(at)] : ["", id];
};

// An element with attributes and children; a text is only ever a text.
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null && child !== ""));
  return made;
}
const byId = (id) => document.getElementById(id);
const mono = (text) => element("span", { class: "mono" }, text);
// Long ids break where their parts do, and elsewhere only if they must.
const breakable = (text) => text.split(/(?<=::|[/$,])|(?=\[)/).flatMap((part) => [element("wbr"), part]).slice(1);
function testName(id) {
  const [path, name] = nameOf(id);
  return element("span", { class: "mono" }, element("span", { class: "soft" }, ...breakable(path)), ...(path ? [element("wbr")] : []), ...breakable(name));
}
function verdictOf(test) {
  const kind = group(test);
  return element("span", { class: kind === "skip" ? "skip-mark" : kind }, element("span", { class: "sign", "aria-hidden": "true" }, SIGNS[kind]), outcomeOf(test));
}

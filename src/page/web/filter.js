
// One filter for the timeline and all tables.

const wanted = { words: [], kind: "", worker: "", outcome: "" };
const isFiltering = () => wanted.words.length > 0 || wanted.kind || wanted.worker || wanted.outcome;

// Which tests have to do with a table: by a collision, a leak or a record.
let kindsOfTests = null;
function testsOf(kind) {
  if (!kindsOfTests) {
    kindsOfTests = new Map();
    const note = (kind, test) => {
      if (!test) return;
      if (!kindsOfTests.has(kind)) kindsOfTests.set(kind, new Set());
      kindsOfTests.get(kind).add(test);
    };
    for (const each of collisions) note(each.kind, each.a.test), note(each.kind, each.b.test);
    for (const each of [...leaks, ...records]) note(each.kind, each.test);
  }
  return kindsOfTests.get(kind);
}

const hasWords = (id) => {
  if (!wanted.words.length) return true;
  if (id == null) return false;
  const text = id.toLowerCase();
  return wanted.words.every((part) => text.includes(part));
};
const hasOutcome = (test) => !wanted.outcome || (test != null && outcomeOf(test) === wanted.outcome);
const fits = {
  test: (test) =>
    (!wanted.worker || test.worker === wanted.worker) && hasOutcome(test) && hasWords(test.id) &&
    (!wanted.kind || Boolean(testsOf(wanted.kind)?.has(test))),
  collision: (each) =>
    (!wanted.kind || each.kind === wanted.kind) &&
    (!wanted.worker || each.a.worker === wanted.worker || each.b.worker === wanted.worker) &&
    (!wanted.outcome || hasOutcome(each.a.test) || hasOutcome(each.b.test)) &&
    (hasWords(each.a.test?.id) || hasWords(each.b.test?.id)),
  row: (each) =>
    (!wanted.kind || each.kind === wanted.kind) && (!wanted.worker || each.worker === wanted.worker) &&
    hasOutcome(each.test) && hasWords(each.id),
  left: (each) => !wanted.worker || each.worker === wanted.worker,
};

// What is drawn and counted, made anew when the filter changes.
let shownTests = new Set(tests), shownCollisions = collisions;
function applyFilter() {
  shownTests = isFiltering() ? new Set(tests.filter(fits.test)) : new Set(tests);
  shownCollisions = isFiltering() ? collisions.filter(fits.collision) : collisions;
  const all = tests.filter((test) => !test.scope).length;
  const fitting = isFiltering() ? [...shownTests].filter((test) => !test.scope).length : all;
  byId("clear").hidden = !isFiltering();
  byId("matches").value = isFiltering() ? `${figure.format(fitting)} of ${count(all, "test")}, ${count(shownCollisions.length, "collision")}` : "";
  drawTimeline();
  refreshTables();
}

function setUpFilter() {
  const choices = (id, all, values) =>
    byId(id).append(element("option", { value: "" }, all), ...values.map((value) => element("option", { value }, value)));
  const kinds = new Set([...collisions, ...leaks, ...records].map((each) => each.kind));
  choices("kind", "All tables", [...kinds].sort());
  choices("worker", "All workers", rows.map((worker) => worker.name));
  choices("outcome", "All outcomes", [...new Set(tests.map(outcomeOf))].sort());
  let pending = 0;
  const read = () => {
    wanted.words = byId("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const id of ["kind", "worker", "outcome"]) wanted[id] = byId(id).value;
    clearTimeout(pending);
    pending = setTimeout(applyFilter, 60);
  };
  byId("filter").addEventListener("input", read);
  byId("filter").addEventListener("reset", () => setTimeout(read));
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
}


// The head of the page, and everything at work.

function drawHead() {
  const exit = run.exit_code == null ? "" : `, exit code ${run.exit_code}`;
  const state = { passed: ["good", "✓"], failed: ["bad", "✗"], crashed: ["crashed", "†"] }[run.state] ?? ["unknown", "…"];
  document.title = `${run.state} ${run.tag}, isolane`;
  byId("state").className = state[0];
  byId("state").textContent = `${state[1]} ${run.state}${exit}`;
  byId("command").textContent = run.command;
  const fact = (name, value) => value && element("div", {}, element("dt", {}, name), element("dd", {}, value));
  const began = run.started_at.replace("T", " ").replace(/\.\d+Z$/, " UTC");
  byId("facts").append(...[
    fact("run", mono(run.run_id)), fact("began", element("time", { datetime: run.started_at }, began)),
    fact("took", run.ended_at ? duration(endOfRun) : "not over yet"), fact("runner", run.runner), fact("host", run.host), fact("in", mono(run.cwd)),
  ].filter(Boolean));
  const outcomes = new Map();
  for (const test of tests) if (!test.scope) outcomes.set(outcomeOf(test), [test, (outcomes.get(outcomeOf(test))?.[1] ?? 0) + 1]);
  const tally = (n, name, ...content) => element("div", {}, element("dt", {}, name), element("dd", {}, ...content, figure.format(n)));
  const { counts } = raw;
  const ordered = [...outcomes].sort(([, [a]], [, [b]]) => rank(a) - rank(b));
  const plural = (n, one) => (n === 1 ? one : `${one}s`);
  byId("counts").append(
    tally(raw.workers.length, plural(raw.workers.length, "worker")), tally(counts.tests, plural(counts.tests, "test")),
    ...ordered.map(([name, [test, n]]) => tally(n, name, element("span", { class: `sign ${group(test) === "skip" ? "skip-mark" : group(test)}`, "aria-hidden": "true" }, SIGNS[group(test)]))),
    ...[["collision", counts.collisions], ["leak", counts.leaks], ["record", counts.records]].map(([name, n]) => tally(n, plural(n, name))),
  );
  byId("verdict").replaceChildren(verdict(counts));
  byId("legend").append(...[...new Set(tests.filter((test) => !test.scope).map(group))].sort((a, b) => GROUPS.indexOf(a) - GROUPS.indexOf(b)).map((kind) => {
    const words = { good: "passed", skip: "skipped", unknown: "not known", bad: "failed", error: "error", crashed: "crashed" };
    return element("li", {}, element("b", { class: kind === "skip" ? "skip-mark" : kind, "aria-hidden": "true" }, SIGNS[kind]), words[kind]);
  }));
  if (collisions.length) byId("legend").append(element("li", {}, "⌇ collision", ...(collisions.some((each) => each.overlap <= 0) && collisions.length <= 800 ? [" (┆ without overlap)"] : [])));
}

function verdict({ collisions: n, touches }) {
  if (!n && touches) return `No collisions: ${count(touches, "touched row")} seen, and no two workers met over one.`;
  if (!n) return "No collisions were found; no touches of rows were recorded in this run.";
  const failed = collisions.filter((each) => each.failed).length;
  const over = failed ? `; in ${figure.format(failed)} of them a test failed` : "; no test failed over one";
  return `${count(n, "time")}, two workers met over one row${over}.`;
}

byId("timeline").hidden = !tests.length && !collisions.length;
readColours();
drawHead();
setUpFilter();
setUpDetail();
setUpTables();
setUpPointer();
applyFilter();

const redraw = () => {
  readColours();
  drawTimeline();
};
let resized = 0;
new ResizeObserver(() => {
  if (plot.clientWidth === size.width) return;
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(drawTimeline);
}).observe(plot);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
// Paper has its own colours, and what went wrong is on it whichever table was chosen.
matchMedia("print").addEventListener("change", redraw);
addEventListener("beforeprint", () => TABLES.forEach(fillTable));

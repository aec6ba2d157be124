
// The panel with everything about a test, a collision or a record.

const dialog = byId("detail");
const trail = [];
const opened = () => (dialog.open ? (trail.at(-1) ?? null) : null);

function open(thing) {
  trail.push(thing);
  show();
  if (!dialog.open) dialog.showModal();
  drawOver();
}

function show() {
  const thing = trail.at(-1);
  const [title, parts] = thing.pattern ? ofCollision(thing) : thing.number != null ? ofTest(thing) : ofRow(thing);
  byId("detail-head").textContent = title;
  byId("detail-body").replaceChildren(...parts.filter(Boolean));
  byId("back").hidden = trail.length < 2;
  dialog.scrollTop = 0;
}

function setUpDetail() {
  byId("close").addEventListener("click", () => dialog.close());
  byId("back").addEventListener("click", () => {
    trail.pop();
    show();
    drawOver();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && event.clientX < dialog.getBoundingClientRect().left && dialog.close());
  dialog.addEventListener("close", () => {
    trail.length = 0;
    drawOver();
  });
}

const facts = (pairs) =>
  element("dl", {}, ...pairs.filter(([, value]) => value != null && value !== "").flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
const heading = (text) => element("h3", {}, text);
const pre = (text) => element("pre", { tabindex: "0" }, text);
const linkTo = (thing, ...content) => element("button", { type: "button", class: "plain", onclick: () => open(thing) }, ...content);

// As a shell takes it.
const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
function whoCommand(kind, key) {
  let words = [key];
  try {
    const columns = JSON.parse(key);
    if (columns && typeof columns === "object" && !Array.isArray(columns))
      words = Object.entries(columns).map(([name, value]) => `${name}=${value !== null && typeof value === "object" ? JSON.stringify(value) : value}`);
  } catch {
    // A key that is no JSON is one word.
  }
  return ["isolane", "who", kind, ...words].map(quoted).join(" ");
}
function commandLine(text) {
  const shown = pre(text);
  const button = element("button", { type: "button", "aria-label": `Copy: ${text}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // No clipboard here: what is selected can be copied by hand.
      getSelection().selectAllChildren(shown);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return element("div", { class: "command" }, shown, button);
}

function ofCollision(each) {
  const about = ({ worker, test, op, at }, name) =>
    element("section", {}, heading(name), facts([
      ["worker", worker ?? "none of this run"],
      ["lane", String(workers.get(worker)?.lane ?? "")],
      [test?.scope ? `${test.scope} fixture` : "test", test && linkTo(test, testName(test.id))],
      ["outcome", test && !test.scope && verdictOf(test)],
      ["operation", op],
      ["at", at != null && `${since(at)} (${clock(at)})`],
      ["test ran", test && `${since(test.began)} to ${since(test.ended)}, ${duration(test.ended - test.began)}`],
    ].map(([name, value]) => [name, value || null])));
  const together = each.overlap > 0 ? `${(each.overlap / 1000).toFixed(1)} ms, in which both tests ran` : "none: one test came after the other";
  return [`Collision: ${each.pattern}`, [
    element("p", { class: "soft" }, PATTERNS[each.pattern] ?? ""),
    heading("Row"),
    facts([["table", mono(each.kind)], ["key", each.key == null ? "all rows" : mono(each.key)], ["overlap", together]]),
    pairPicture(each),
    element("div", { class: "two" }, about(each.a, "First, had the row"), about(each.b, "Second, came to it")),
    heading("Failure"),
    each.failed
      ? element("div", {}, element("p", {}, linkTo(each.failed, testName(each.failed.id)), " failed."), each.failed.message ? pre(each.failed.message) : null)
      : element("p", {}, "Neither test failed over it."),
    heading("Ask the ledger"),
    each.key == null ? null : commandLine(whoCommand(each.kind, each.key)),
    each.failed && commandLine(`isolane why ${quoted(each.failed.id)}`),
  ]];
}

// Both tests to scale, when each touched the row, and where they overlapped.
function pairPicture({ a, b, overlap }) {
  const times = [a, b].flatMap(({ test, at }) => [test?.began, test?.ended, at]).filter((at) => at != null);
  if (times.length < 2) return null;
  const svg = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text != null) made.textContent = text;
    return made;
  };
  const from = Math.min(...times), to = Math.max(...times, from + 1), width = Math.min(560, innerWidth - 40), gutter = 64;
  const x = (at) => gutter + ((at - from) / (to - from)) * (width - gutter - 4);
  const picture = svg("svg", { class: "pair", viewBox: `0 0 ${width} 96`, role: "img", "aria-label": "Both tests over time" });
  const both = [Math.max(a.test?.began ?? to, b.test?.began ?? to), Math.min(a.test?.ended ?? from, b.test?.ended ?? from)];
  if (overlap > 0 && both[1] > both[0]) picture.append(svg("rect", { class: "meet", x: x(both[0]), y: 8, width: Math.max(x(both[1]) - x(both[0]), 1), height: 76 }));
  const points = [a, b].map(({ worker, test, op, at }, row) => {
    const y = 14 + row * 40;
    picture.append(svg("text", { x: 0, y: y + 16 }, (worker ?? "?").slice(0, 10)), svg("rect", { class: "lane", x: gutter, y: y + 10, width: width - gutter - 4, height: 4 }));
    if (test) picture.append(svg("rect", { class: `g-${group(test)}`, x: x(test.began), y, width: Math.max(x(test.ended) - x(test.began), 2), height: 24 }));
    if (at == null) return null;
    const isLate = x(at) > width - 70;
    picture.append(
      svg("line", { class: "tick", x1: x(at), x2: x(at), y1: y - 3, y2: y + 27 }),
      svg("text", { x: x(at) + (isLate ? -5 : 5), y: row ? y + 37 : y - 4, "text-anchor": isLate ? "end" : "start" }, op ?? ""),
    );
    return [x(at), row ? y - 3 : y + 27];
  });
  if (points[0] && points[1]) picture.append(svg("path", { class: "join", d: `M${points[0]} L${points[1]}` }));
  return picture;
}

function ofTest(test) {
  const mine = records.filter((record) => record.test === test).slice(0, 100);
  const lost = leaks.filter((leak) => leak.test === test);
  return [test.scope ? `Fixture (${test.scope})` : "Test", [
    element("p", {}, testName(test.id)),
    heading("What happened"),
    facts([
      ["outcome", test.scope ? null : verdictOf(test)],
      ["worker", test.worker],
      ["lane", String(workers.get(test.worker)?.lane ?? "")],
      ["attempt", test.attempt > 1 ? String(test.attempt) : null],
      ["began", `${since(test.began)} (${clock(test.began)})`],
      ["ended", test.isOpen ? "not yet" : `${since(test.ended)}`],
      ["took", duration(test.ended - test.began)],
    ]),
    test.message && heading("Message"), test.message && pre(test.message),
    heading("Collisions"),
    test.meetings.length
      ? element("ul", {}, ...test.meetings.slice(0, 100).map((each) => {
          const other = each.a.test === test ? each.b : each.a;
          return element("li", {}, linkTo(each, `${each.pattern}: `, mono(`${each.kind} ${each.key ?? ""}`)), ` with ${other.worker ?? "somebody else"}`);
        }))
      : element("p", { class: "soft" }, "None."),
    mine.length ? heading("Records") : null,
    mine.length ? element("ul", {}, ...mine.map((record) => element("li", {}, linkTo(record, mono(`${record.kind} ${record.key}`)), ` ${record.state}`))) : null,
    lost.length ? heading("Left behind") : null,
    lost.length ? element("ul", {}, ...lost.map((leak) => element("li", {}, `${leak.n} in `, mono(leak.kind)))) : null,
    rank(test) > 2 && heading("Ask the ledger"),
    rank(test) > 2 && commandLine(`isolane why ${quoted(test.id)}`),
  ]];
}

function ofRow(row) {
  const titles = { n: "Leak", source: "Record", provider: "Not removed" };
  const title = Object.entries(titles).find(([key]) => key in row)?.[1] ?? "Row";
  return [title, [
    facts([
      ["state", row.state], ["table", row.source || row.n ? mono(row.kind) : null], ["kind", row.provider ? row.kind : null],
      ["key", row.key != null ? mono(row.key) : null], ["name", row.name && mono(row.name)], ["provider", row.provider && mono(row.provider)],
      ["left", row.n && count(row.n, "row")], ["test", row.test ? linkTo(row.test, testName(row.id)) : row.id && testName(row.id)],
      ["worker", row.worker], ["found by", row.source], ["made", row.at != null ? `${since(row.at)} (${clock(row.at)})` : null], ["error", row.error],
    ]),
    row.key != null ? heading("Ask the ledger") : null,
    row.key != null ? commandLine(whoCommand(row.kind, row.key)) : null,
  ]];
}

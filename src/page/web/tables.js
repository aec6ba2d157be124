
// Tables of what the timeline shows, and of what it cannot.

const CUT = 500;
const rowName = (each) => element("span", { class: "mono" }, ...breakable(each.kind), " ", element("wbr"), ...breakable(each.key ?? "(all rows)"));
const testCell = (test, id) => (test || id ? testName(test?.id ?? id) : element("span", { class: "soft" }, "outside of tests"));
const sideCell = ({ worker, test, op }) =>
  element("div", {}, `${worker ?? "nobody of this run"} ${op ?? ""}`, test && element("div", {}, testName(test.id)));
const overlapText = (each) => (each.overlap > 0 ? `${(each.overlap / 1000).toFixed(1)} ms` : "none");

// A column: its head, what stands in it, what it is sorted by, its class.
const TABLES = [
  {
    id: "collisions", title: "Collisions", all: collisions, total: raw.counts.collisions, fits: fits.collision,
    empty: "No collisions.",
    columns: [
      ["Pattern", (each) => element("span", { class: each.failed ? "bad" : "" }, element("span", { class: "sign", "aria-hidden": "true" }, each.failed ? "✗" : "⇄"), each.pattern), (each) => each.pattern, "short"],
      ["Row", rowName, (each) => `${each.kind} ${each.key}`],
      ["First", (each) => sideCell(each.a), (each) => each.a.test?.id ?? ""],
      ["Second", (each) => sideCell(each.b), (each) => each.b.test?.id ?? ""],
      ["Overlap", overlapText, (each) => -each.overlap, "number"],
      ["At", (each) => since(each.b.at ?? each.a.at), (each) => each.b.at ?? each.a.at, "number"],
    ],
  },
  {
    id: "tests", title: "Tests", all: [...tests].filter((test) => !test.scope).sort((a, b) => rank(b) - rank(a) || a.began - b.began), total: raw.counts.tests,
    fits: fits.test, empty: "No tests.",
    columns: [
      ["Outcome", verdictOf, (test) => -rank(test), "short"],
      ["Test", (test) => testName(test.id), (test) => test.id],
      ["Worker", (test) => test.worker, (test) => rowOf(test.worker), "short"],
      ["Attempt", (test) => (test.attempt > 1 ? String(test.attempt) : ""), (test) => -test.attempt, "number"],
      ["Collisions", (test) => (test.meetings.length ? String(test.meetings.length) : ""), (test) => -test.meetings.length, "number"],
      ["Began", (test) => since(test.began), (test) => test.began, "number"],
      ["Took", (test) => duration(test.ended - test.began), (test) => test.began - test.ended, "number"],
    ],
  },
  {
    id: "leaks", title: "Leaks", all: leaks, total: raw.counts.leaks, fits: fits.row, empty: "No leaks: no test left a row behind.",
    columns: [
      ["Table", (leak) => mono(leak.kind), (leak) => leak.kind],
      ["Rows", (leak) => figure.format(leak.n), (leak) => -leak.n, "number"],
      ["Test", (leak) => testCell(leak.test, leak.id), (leak) => leak.id],
      ["Worker", (leak) => leak.worker, (leak) => leak.worker, "short"],
    ],
  },
  {
    id: "records", title: "Records", all: records, total: raw.counts.records, fits: fits.row, empty: "No records.",
    columns: [
      ["State", (record) => record.state, (record) => record.state, "short"],
      ["Row", rowName, (record) => `${record.kind} ${record.key}`],
      ["Test", (record) => testCell(record.test, record.id), (record) => record.id ?? ""],
      ["Worker", (record) => record.worker ?? "", (record) => record.worker ?? "", "short"],
      ["Made", (record) => since(record.at), (record) => record.at, "number"],
    ],
  },
  {
    id: "left", title: "Not removed", all: left, total: left.length, fits: fits.left, empty: "Nothing is left: all that the run made is removed.",
    columns: [
      ["State", (thing) => thing.state, (thing) => thing.state, "short"],
      ["Kind", (thing) => thing.kind, (thing) => thing.kind, "short"],
      ["Name", (thing) => mono(thing.name), (thing) => thing.name],
      ["Worker", (thing) => thing.worker ?? "", (thing) => thing.worker ?? "", "short"],
      ["Error", (thing) => thing.error ?? "", (thing) => thing.error ?? ""],
    ],
  },
];

function setUpTables() {
  for (const table of TABLES) {
    Object.assign(table, { limit: CUT, order: null, isStale: false });
    table.tab = element("button", { type: "button", role: "tab", id: `tab-${table.id}`, "aria-controls": `panel-${table.id}`, onclick: () => choose(table) });
    table.panel = element("div", { class: "panel", role: "tabpanel", id: `panel-${table.id}`, "aria-labelledby": `tab-${table.id}`, "data-title": table.title });
    byId("tabs").append(table.tab);
    byId("panels").append(table.panel);
  }
  byId("tabs").addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    const at = TABLES.findIndex((table) => table.tab === document.activeElement);
    const next = TABLES[(at + way + TABLES.length) % TABLES.length];
    choose(next);
    next.tab.focus();
  });
  choose(TABLES[0].all.length || !tests.length ? TABLES[0] : TABLES[1]);
}

function choose(chosen) {
  for (const table of TABLES) {
    table.isChosen = table === chosen;
    table.tab.setAttribute("aria-selected", String(table.isChosen));
    table.tab.tabIndex = table.isChosen ? 0 : -1;
    table.panel.hidden = !table.isChosen;
  }
  fillTable(chosen);
}

// Only the table that is seen is made; the others know that they are out of date.
function refreshTables() {
  for (const table of TABLES) {
    table.limit = CUT;
    table.isStale = true;
    const n = isFiltering() ? table.all.filter(table.fits).length : table.total;
    table.tab.textContent = `${table.title} ${figure.format(n)}`;
    if (table.isChosen) fillTable(table);
  }
}

function fillTable(table) {
  if (!table.isStale) return;
  table.isStale = false;
  let found = isFiltering() ? table.all.filter(table.fits) : table.all;
  if (!found.length) {
    table.panel.replaceChildren(element("p", {}, isFiltering() && table.all.length ? "Nothing fits the filter." : table.empty));
    return;
  }
  if (table.order) {
    const { by, way } = table.order;
    const compare = (a, b) => (a < b ? -way : a > b ? way : 0);
    found = [...found].sort((a, b) => compare(by(a), by(b)));
  }
  const head = element("tr", {}, ...table.columns.map(([title, , by, kind]) => {
    const order = table.order?.by === by ? (table.order.way > 0 ? "ascending" : "descending") : null;
    const sort = () => {
      table.order = { by, way: order === "ascending" ? -1 : 1 };
      table.isStale = true;
      fillTable(table);
    };
    return element("th", { class: kind, "aria-sort": order, scope: "col" }, element("button", { type: "button", onclick: sort }, title));
  }));
  const body = element("tbody", {});
  // One row at a time is in the order of the Tab key; arrows move it.
  const make = (thing) => {
    const cells = table.columns.map(([title, cell, , kind]) => element("td", { class: kind, "data-label": title }, cell(thing)));
    return element("tr", { tabindex: "-1", onclick: () => open(thing) }, ...cells);
  };
  const append = () => {
    const from = body.children.length;
    body.append(...found.slice(from, table.limit).map(make));
    if (body.firstElementChild && !from) body.firstElementChild.tabIndex = 0;
    more.hidden = table.limit >= found.length;
    more.textContent = `Show ${figure.format(Math.min(CUT, found.length - table.limit))} more of ${figure.format(found.length)}`;
  };
  const more = element("button", { type: "button", class: "more", onclick: () => {
    const from = body.children.length;
    table.limit += CUT;
    append();
    moveTo(body.children[from]);
  } });
  body.addEventListener("keydown", (event) => onRowKey(event, found));
  const cut = table.total > table.all.length ? element("p", { class: "soft" }, `The page holds ${figure.format(table.all.length)} of ${figure.format(table.total)}; isolane report -o run.json has all.`) : null;
  table.panel.replaceChildren(...[cut, element("table", { "aria-label": `${table.title}: Enter opens a row` }, element("thead", {}, head), body), more].filter(Boolean));
  append();
}

function moveTo(row) {
  if (!row) return;
  for (const other of row.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  row.tabIndex = 0;
  row.focus();
}

function onRowKey(event, found) {
  const row = event.target.closest("tr");
  if (!row || event.target !== row) return;
  const { key } = event, body = row.parentElement;
  if (key === "Enter" || key === " ") open(found[[...body.children].indexOf(row)]);
  else if (key === "ArrowDown") moveTo(row.nextElementSibling);
  else if (key === "ArrowUp") moveTo(row.previousElementSibling);
  else if (key === "Home") moveTo(body.firstElementChild);
  else if (key === "End") moveTo(body.lastElementChild);
  else return;
  event.preventDefault();
}

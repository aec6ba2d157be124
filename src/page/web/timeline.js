
// The timeline: a lane for each worker, a bar for each test, a line for each collision. One
// canvas holds what stands still, another above it what is pointed at.

const plot = byId("plot"), baseCanvas = byId("base"), overCanvas = byId("over");
const AXIS = 24, PAD = 8, TINY = 3;
const span = (() => {
  let from = Infinity, to = -Infinity;
  for (const each of tests) {
    from = Math.min(from, each.began);
    to = Math.max(to, each.ended);
  }
  // Workers without tests, of a plain command.
  if (from > to) [from, to] = [0, Math.max(endOfRun, 1000)];
  const room = Math.max((to - from) * 0.01, 50);
  return [from - room, to + room];
})();
const view = { from: span[0], to: span[1] };
const size = { width: 0, height: 0, gutter: 0, rowHeight: 0, bar: 0 };
const rowHeight = rows.length <= 16 ? 44 : rows.length <= 40 ? 28 : 18;
let colours = {}, pointed = null, cursor = null, dragged = null;

const toX = (at) => size.gutter + ((at - view.from) / (view.to - view.from)) * (size.width - size.gutter - PAD);
const toTime = (x) => view.from + ((x - size.gutter) / (size.width - size.gutter - PAD)) * (view.to - view.from);
const rowTop = (row) => AXIS + row * size.rowHeight;
const barTop = (row) => rowTop(row) + Math.round((size.rowHeight - size.bar) / 2);
const rowOf = (name) => workers.get(name)?.row ?? null;

function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = {};
  for (const name of ["raised", "line", "ink", "soft", "sunk", "link", "focus", ...GROUPS]) colours[name] = style.getPropertyValue(`--${name}`).trim();
}

function fitCanvas(canvas) {
  const dense = window.devicePixelRatio || 1;
  canvas.width = Math.round(size.width * dense);
  canvas.height = Math.round(size.height * dense);
  canvas.style.width = `${size.width}px`;
  canvas.style.height = `${size.height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  return pen;
}

function drawTimeline() {
  size.width = plot.clientWidth;
  size.gutter = size.width < 500 ? 52 : 84;
  size.rowHeight = rowHeight;
  size.bar = Math.round(rowHeight * 0.5);
  size.height = AXIS + rows.length * rowHeight + PAD;
  const pen = fitCanvas(baseCanvas);
  pen.clearRect(0, 0, size.width, size.height);
  drawAxis(pen);
  for (const worker of rows) drawLane(pen, worker);
  drawLinks(pen);
  drawOver();
}

function drawAxis(pen) {
  const wide = view.to - view.from, room = size.width - size.gutter;
  let step = 10 ** Math.floor(Math.log10((wide * 90) / room));
  for (const more of [2, 2.5, 2]) if ((step / wide) * room < 80) step *= more;
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.textBaseline = "middle";
  for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
    const x = Math.round(toX(at)) + 0.5;
    pen.fillStyle = colours.line;
    pen.fillRect(x - 0.5, AXIS - 4, 1, size.height - AXIS);
    const unit = step >= 1e6 ? [1e6, 0, " s"] : step >= 1e5 ? [1e6, 1, " s"] : step >= 1e3 ? [1e3, 0, " ms"] : [1e3, 2, " ms"];
    const label = (at / unit[0]).toFixed(unit[1]) + unit[2];
    pen.fillStyle = colours.soft;
    if (x + pen.measureText(label).width + 4 < size.width) pen.fillText(label, x + 4, AXIS / 2);
  }
  // Which part of the whole is seen.
  if (wide < (span[1] - span[0]) * 0.999) {
    const place = (at) => size.gutter + ((at - span[0]) / (span[1] - span[0])) * (room - PAD);
    pen.fillStyle = colours.soft;
    pen.fillRect(place(view.from), 0, Math.max(place(view.to) - place(view.from), 3), 2);
  }
}

// Where in a worker's tests to begin, so that none is missed that ends after `at`.
function firstAfter(list, at) {
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle].reach < at) low = middle + 1;
    else high = middle;
  }
  return low;
}

function drawLane(pen, worker) {
  const top = rowTop(worker.row), y = barTop(worker.row), width = size.width;
  pen.fillStyle = colours.line;
  pen.fillRect(0, top, width, 1);
  pen.save();
  pen.beginPath();
  pen.rect(size.gutter, top, width - size.gutter, size.rowHeight);
  pen.clip();
  // How long the worker lived.
  if (worker.began != null) {
    const born = Math.max(toX(worker.began), 0), gone = Math.min(toX(worker.ended ?? endOfRun), width);
    pen.fillStyle = colours.sunk;
    pen.fillRect(born, y, Math.max(gone - born, 0), size.bar);
  }
  // Tests too short to be seen share a pixel; it shows the worst of them, and whether any fits the filter.
  const worst = new Int8Array(Math.ceil(width) + 2).fill(-1);
  const marks = new Map();
  for (let at = firstAfter(worker.tests, view.from); at < worker.tests.length; at++) {
    const test = worker.tests[at];
    if (test.began > view.to) break;
    const x = toX(test.began), end = toX(test.ended), fitting = shownTests.has(test);
    const kind = group(test);
    if (end - x < TINY) {
      const value = rank(test) + (fitting ? GROUPS.length : 0);
      const column = Math.max(0, Math.floor(x));
      worst[column] = Math.max(worst[column], value);
      for (let more = column + 1; more < end && more < worst.length; more++) worst[more] = Math.max(worst[more], value);
    } else {
      drawBar(pen, Math.max(x, size.gutter - 4), y, Math.min(end, width + 4), kind, fitting, x >= size.gutter - 4);
    }
    if (fitting && rank(test) > 2) {
      const place = Math.round((end - x < 14 ? (x + end) / 2 : x + 4) / 5) * 5;
      if (!(marks.get(place) >= rank(test))) marks.set(place, rank(test));
    }
  }
  worst.forEach((value, column) => {
    if (value < 0) return;
    pen.globalAlpha = value >= GROUPS.length ? 1 : 0.2;
    pen.fillStyle = colours[GROUPS[value % GROUPS.length]];
    pen.fillRect(column, y, 1, size.bar);
  });
  pen.globalAlpha = 1;
  for (const [x, value] of marks) drawMark(pen, x, y - 3, GROUPS[value]);
  pen.fillStyle = colours.soft;
  for (const fixture of worker.fixtures) {
    if (fixture.ended < view.from || fixture.began > view.to) continue;
    const x = Math.max(toX(fixture.began), size.gutter);
    pen.globalAlpha = shownTests.has(fixture) ? 0.35 : 0.12;
    pen.fillRect(x, y + size.bar + 2, Math.max(Math.min(toX(fixture.ended), width) - x, 1), 2);
  }
  pen.restore();
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  pen.fillStyle = worker.outcome === "crashed" ? colours.crashed : colours.ink;
  const sign = worker.outcome === "crashed" ? ` ${SIGNS.crashed}` : "";
  pen.fillText(shorten(pen, worker.name, size.gutter - 10 - pen.measureText(sign).width) + sign, 8, y + size.bar / 2);
}

function shorten(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let cut = text;
  while (cut.length > 1 && pen.measureText(`${cut}…`).width > room) cut = cut.slice(0, -1);
  return `${cut}…`;
}

function drawBar(pen, x, y, end, kind, fitting, hasStart) {
  // A gap of a pixel, where there is room, keeps neighbours apart.
  const width = Math.max(end - x - (end - x > 4 ? 1 : 0), 1);
  pen.globalAlpha = fitting ? 1 : 0.2;
  if (kind === "skip") {
    pen.strokeStyle = colours.skip;
    pen.lineWidth = 1;
    pen.strokeRect(x + 0.5, y + 0.5, Math.max(width - 1, 1), size.bar - 1);
  } else {
    pen.fillStyle = colours[kind];
    pen.fillRect(x, y, width, size.bar);
  }
  if (hasStart && width >= 14 && size.bar >= 12) {
    pen.font = `bold 11px ${getComputedStyle(document.body).fontFamily}`;
    pen.fillStyle = kind === "skip" ? colours.soft : kind === "good" || kind === "unknown" ? colours.ink : colours.raised;
    pen.fillText(SIGNS[kind], x + 4, y + size.bar / 2);
  }
  pen.globalAlpha = 1;
}

// What failed is seen by its shape: a triangle; what crashed or was in error, a diamond.
function drawMark(pen, x, y, kind) {
  pen.fillStyle = colours[kind];
  pen.beginPath();
  if (kind === "bad") pen.moveTo(x - 4, y - 6), pen.lineTo(x + 4, y - 6), pen.lineTo(x, y);
  else pen.moveTo(x, y - 8), pen.lineTo(x + 4, y - 4), pen.lineTo(x, y), pen.lineTo(x - 4, y - 4);
  pen.fill();
}

// Where a collision's line begins and ends; nothing where one side has no lane or is out of sight.
function ends(each) {
  const place = ({ worker, test, at }, other) => {
    const row = rowOf(worker);
    const when = at ?? test?.began ?? other.at;
    return row == null || when == null ? null : { x: toX(when), row };
  };
  const a = place(each.a, each.b), b = place(each.b, each.a);
  if (!a || !b || a.row === b.row) return null;
  if (Math.max(a.x, b.x) < size.gutter || Math.min(a.x, b.x) > size.width) return null;
  const [upper, lower] = a.row < b.row ? [a, b] : [b, a];
  return { upper: [upper.x, barTop(upper.row) + size.bar], lower: [lower.x, barTop(lower.row)] };
}

function traceLink(pen, { upper, lower }) {
  const bend = Math.max((lower[1] - upper[1]) * 0.5, 10);
  pen.moveTo(...upper);
  pen.bezierCurveTo(upper[0], upper[1] + bend, lower[0], lower[1] - bend, ...lower);
}

function drawLinks(pen) {
  const seen = shownCollisions.map((each) => [each, ends(each)]).filter(([, link]) => link);
  const alpha = Math.min(0.85, Math.max(0.1, 60 / Math.max(seen.length, 1)));
  pen.save();
  pen.beginPath();
  pen.rect(size.gutter, AXIS, size.width, size.height);
  pen.clip();
  // Those with a failed test come last and lie above.
  seen.reverse();
  for (const [each, link] of seen) {
    const failed = each.failed != null;
    pen.strokeStyle = pen.fillStyle = failed ? colours.bad : colours.link;
    pen.globalAlpha = failed ? Math.min(1, alpha * 1.6) : alpha;
    pen.lineWidth = failed ? 1.5 : 1.1;
    // Where the tests did not overlap, the line is broken.
    pen.setLineDash(each.overlap > 0 || seen.length > 800 ? [] : [4, 3]);
    pen.beginPath();
    traceLink(pen, link);
    pen.stroke();
    if (seen.length <= 400) dots(pen, link, 2);
  }
  pen.restore();
}

function dots(pen, { upper, lower }, radius) {
  for (const [x, y] of [upper, lower]) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.fill();
  }
}

function drawOver() {
  const pen = fitCanvas(overCanvas);
  pen.clearRect(0, 0, size.width, size.height);
  if (dragged && Math.abs(dragged.to - dragged.from) > 3) {
    pen.globalAlpha = 0.14;
    pen.fillStyle = colours.focus;
    pen.fillRect(Math.min(dragged.from, dragged.to), AXIS, Math.abs(dragged.to - dragged.from), size.height - AXIS);
    pen.globalAlpha = 1;
  }
  const frame = (test, colour) => {
    const row = rowOf(test.worker);
    if (row == null) return;
    const x = Math.max(toX(test.began), size.gutter), end = Math.min(toX(test.ended), size.width);
    if (end < size.gutter || x > size.width) return;
    pen.strokeStyle = colour;
    pen.lineWidth = 2;
    pen.strokeRect(x - 2, barTop(row) - 2, Math.max(end - x, 1) + 4, size.bar + 4);
  };
  const chosen = opened() ?? pointed;
  const links = chosen?.pattern ? [chosen] : (chosen?.meetings ?? []).filter((each) => shownCollisions.includes(each)).slice(0, 200);
  for (const each of links) {
    const link = ends(each);
    if (!link) continue;
    pen.strokeStyle = pen.fillStyle = each.failed ? colours.bad : colours.link;
    pen.lineWidth = 2.5;
    pen.beginPath();
    traceLink(pen, link);
    pen.stroke();
    dots(pen, link, 3.5);
  }
  if (chosen?.pattern) for (const test of [chosen.a.test, chosen.b.test]) test && frame(test, colours.ink);
  else if (chosen) frame(chosen, colours.ink);
  if (cursor && document.activeElement === plot) frame(cursor, colours.focus);
}

// What is at a place: a bar, or between bars a collision's line.
function find(x, y) {
  const row = Math.floor((y - AXIS) / size.rowHeight);
  const worker = rows[row];
  if (!worker || x < size.gutter) return null;
  const isOnBar = y >= barTop(row) && y <= barTop(row) + size.bar;
  if (!isOnBar) {
    const link = nearestLink(x, y, 5);
    if (link) return link;
  }
  let best = null, nearest = 4;
  for (let at = firstAfter(worker.tests, toTime(x - 4)); at < worker.tests.length; at++) {
    const test = worker.tests[at];
    if (toX(test.began) > x + 4) break;
    if (!shownTests.has(test)) continue;
    const distance = Math.max(toX(test.began) - x, x - toX(test.ended), 0) - rank(test) * 0.1;
    if (distance < nearest) [nearest, best] = [distance, test];
  }
  return best ?? worker.fixtures.find((each) => toX(each.began) <= x && toX(each.ended) >= x) ?? null;
}

function nearestLink(x, y, limit) {
  let best = null, nearest = limit;
  for (const each of shownCollisions) {
    const link = ends(each);
    if (!link || y < link.upper[1] - limit || y > link.lower[1] + limit) continue;
    const bend = Math.max((link.lower[1] - link.upper[1]) * 0.5, 10);
    const [x0, y0] = link.upper, [x3, y3] = link.lower;
    for (let step = 0; step <= 24; step++) {
      const t = step / 24, u = 1 - t, s = 3 * u * u * t, r = 3 * u * t * t;
      const distance = Math.hypot(
        (u ** 3 + s) * x0 + (r + t ** 3) * x3 - x,
        (u ** 3) * y0 + s * (y0 + bend) + r * (y3 - bend) + t ** 3 * y3 - y,
      );
      if (distance < nearest) [nearest, best] = [distance, each];
    }
  }
  return best;
}

function zoom(factor, around = (view.from + view.to) / 2) {
  const wide = Math.max(Math.min((view.to - view.from) * factor, span[1] - span[0]), 200);
  const share = (around - view.from) / (view.to - view.from);
  look(around - wide * share, wide);
}

function look(from, wide) {
  const width = Math.min(wide, span[1] - span[0]);
  view.from = Math.min(Math.max(from, span[0]), span[1] - width);
  view.to = view.from + width;
  drawTimeline();
}

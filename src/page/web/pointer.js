
// The timeline by mouse, finger and keyboard.

function tell(thing) {
  byId("plot-status").textContent = !thing
    ? ""
    : thing.pattern
      ? `${thing.pattern}: ${thing.kind} ${thing.key ?? ""}, ${thing.a.worker ?? "?"} and ${thing.b.worker ?? "?"}`
      : `${thing.worker}: ${thing.scope ? `${thing.scope} fixture ` : ""}${thing.id}, ${outcomeOf(thing)}, ${duration(thing.ended - thing.began)}`;
}

function setUpPointer() {
  const place = (event) => {
    const box = plot.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let asked = null;
  plot.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (dragged) {
      if (event.pointerType === "mouse") {
        dragged.to = Math.max(x, size.gutter);
        drawOver();
      } else if (Math.abs(x - dragged.to) > 1) {
        const wide = view.to - view.from;
        look(view.from - ((x - dragged.to) / (size.width - size.gutter)) * wide, wide);
        dragged.to = x;
        dragged.isMoved = true;
      }
      return;
    }
    if (asked || event.pointerType !== "mouse") return;
    asked = requestAnimationFrame(() => {
      asked = null;
      const found = find(x, y);
      plot.style.cursor = found ? "pointer" : "";
      if (found === pointed) return;
      pointed = found;
      tell(found);
      drawOver();
    });
  });
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const [x] = place(event);
    dragged = { from: Math.max(x, size.gutter), to: Math.max(x, size.gutter), isMoved: false };
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    const drag = dragged;
    dragged = null;
    if (!drag) return;
    const [x, y] = place(event);
    if (event.pointerType === "mouse" && Math.abs(drag.to - drag.from) > 5) {
      const [from, to] = [drag.from, drag.to].sort((a, b) => a - b).map(toTime);
      look(from, Math.max(to - from, 200));
    } else if (!drag.isMoved) {
      const found = find(x, y);
      if (found) open(found);
    }
    drawOver();
  });
  plot.addEventListener("pointercancel", () => ((dragged = null), drawOver()));
  plot.addEventListener("pointerleave", () => !dragged && pointed && ((pointed = null), tell(null), drawOver()));
  plot.addEventListener("dblclick", (event) => find(...place(event)) || look(span[0], span[1] - span[0]));
  plot.addEventListener("wheel", (event) => {
    const wide = view.to - view.from;
    const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
    if (event.ctrlKey || event.metaKey) zoom(event.deltaY > 0 ? 1.25 : 0.8, toTime(place(event)[0]));
    else if (Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY)) look(view.from + (sideways / size.width) * wide, wide);
    else return;
    event.preventDefault();
  }, { passive: false });
  plot.addEventListener("keydown", onKey);
  plot.addEventListener("focus", drawOver);
  plot.addEventListener("blur", drawOver);
  byId("in").addEventListener("click", () => zoom(0.5));
  byId("out").addEventListener("click", () => zoom(2));
  byId("fit").addEventListener("click", () => look(span[0], span[1] - span[0]));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { key } = event;
  if (key === "Enter" && cursor) open(cursor);
  else if (key === "+" || key === "=") zoom(0.5, cursor?.began);
  else if (key === "-") zoom(2, cursor?.began);
  else if (key === "0") look(span[0], span[1] - span[0]);
  else if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(key)) step(key);
  else return;
  event.preventDefault();
}

function step(key) {
  const fitting = (row) => rows[row].tests.filter((test) => shownTests.has(test));
  let row = cursor ? (rowOf(cursor.worker) ?? 0) : rows.findIndex((worker) => fitting(worker.row).length);
  if (row < 0) return;
  if (cursor && (key === "ArrowUp" || key === "ArrowDown")) {
    const way = key === "ArrowUp" ? -1 : 1;
    for (row += way; rows[row] && !fitting(row).length; row += way);
    if (!rows[row]) return;
    const here = fitting(row), away = (test) => Math.abs(test.began - cursor.began);
    cursor = here.reduce((best, test) => (away(test) < away(best) ? test : best));
  } else {
    const here = fitting(row);
    const at = cursor ? here.findIndex((test) => test.began >= cursor.began) : -1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: here.length - 1 }[key] ?? 0;
    cursor = here[Math.min(Math.max(to, 0), here.length - 1)] ?? cursor;
  }
  const wide = view.to - view.from;
  if (cursor.began < view.from || cursor.began > view.to) look(cursor.began - wide / 2, wide);
  tell(cursor);
  drawOver();
}

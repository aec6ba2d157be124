// Keeps the page as things stand: the server says what has changed, and that is swapped. What
// somebody has filled in, opened or focused stays as it is. The page works without this.
"use strict";

const two = (number) => String(number).padStart(2, "0");
const clock = (time) => `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
const day = (time) => `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;

// Times are UTC in the page, and local where a script runs.
const localise = (root) => {
  const today = day(new Date());
  for (const element of root.querySelectorAll("time")) {
    const time = new Date(element.dateTime);
    if (Number.isNaN(time.getTime())) continue;
    element.title = element.dateTime;
    element.textContent = day(time) === today ? clock(time) : `${day(time)} ${clock(time)}`;
  }
};

// What one node is known by among its neighbours.
const keyOf = (node) => node.id || "";

const sameAttributes = (old, fresh) => {
  for (const { name } of [...old.attributes]) {
    // Whether it is open is the reader's own matter.
    if (!fresh.hasAttribute(name) && name !== "open" && name !== "class") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (!fresh.hasAttribute("class")) old.removeAttribute("class");
};

// Makes the children of one element those of another, and changes as little as it can.
const morph = (old, fresh) => {
  const known = new Map([...old.children].filter(keyOf).map((child) => [keyOf(child), child]));
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const found = keyOf(child) ? known.get(keyOf(child)) : null;
    if (found && found.nodeName === child.nodeName) {
      if (found === at) at = at.nextSibling;
      else old.insertBefore(found, at);
      sameAttributes(found, child);
      morph(found, child);
    } else if (at && at.nodeName === child.nodeName && !keyOf(at) && !keyOf(child)) {
      if (at.nodeType === Node.ELEMENT_NODE) {
        sameAttributes(at, child);
        morph(at, child);
      } else if (at.nodeValue !== child.nodeValue) at.nodeValue = child.nodeValue;
      at = at.nextSibling;
    } else {
      if (child.nodeName === "TR" || child.nodeName === "LI") child.classList.add("fresh");
      old.insertBefore(child, at);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
};

const swap = (id, html) => {
  const part = document.getElementById(id);
  if (!part) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  localise(fresh.content);
  morph(part, fresh.content);
};

// Pools came or went: the whole content is asked for.
const renew = async () => {
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (!answer.ok || answer.redirected) return location.reload();
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  localise(fresh);
  morph(document.querySelector("main"), fresh.querySelector("main"));
};

const state = (word) => {
  const live = document.getElementById("live");
  live.dataset.state = word;
  live.textContent = word === "live" ? "live" : "not live";
};

let stream;
const watch = () => {
  const { page, find } = document.body.dataset;
  stream = new EventSource(`/live?${new URLSearchParams({ page, find })}`);
  stream.addEventListener("open", () => state("live"));
  stream.addEventListener("error", () => {
    state("away");
    // It tries again by itself, unless it was refused.
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => document.hidden || watch(), 5000);
  });
  stream.addEventListener("over", () => location.reload());
  stream.addEventListener("parts", (event) => {
    const { all, changed } = JSON.parse(event.data);
    const here = [...document.querySelectorAll("[data-part]")].map((part) => part.id);
    if (all.length !== here.length || all.some((id) => !here.includes(id))) return renew();
    for (const [id, html] of Object.entries(changed)) swap(id, html);
  });
};

localise(document);
document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone || "local";
if (document.body.dataset.page) {
  watch();
  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    stream.close();
    if (!document.hidden) watch();
  });
}

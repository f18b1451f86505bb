// Keeps a page up to date: when jobs change, the page is asked for again, and the parts of it that differ are replaced.
// Nothing here is needed to read or to act: every action is a form.
"use strict";

const told = document.getElementById("live");
let timer = null, running = false, again = false, slow = 0;

function parts(root) {
  return new Map([...root.querySelectorAll("[data-live][id]")].map((part) => [part.id, part]));
}

function isInUse(part) {
  const focused = document.activeElement;
  return (part.contains(focused) && focused.matches("input:not([type=checkbox]), select, textarea")) ||
    String(document.getSelection()).length > 0 && part.contains(document.getSelection().anchorNode);
}

// A row may be away for a moment (a copy of a cluster that is behind), and is chosen still when it is back.
const chosen = new Set([...document.querySelectorAll("input[name=job]:checked")].map((box) => box.value));

function choose(box, isChosen) {
  box.checked = isChosen;
  if (isChosen) chosen.add(box.value); else chosen.delete(box.value);
}

function keep(before, after) {
  for (const box of after.querySelectorAll("input[name=job]")) box.checked = chosen.has(box.value);
  const all = before.querySelector("#all"), next = after.querySelector("#all");
  if (all && next) next.checked = all.checked;
  const open = [...before.querySelectorAll("details")].map((one) => one.open);
  [...after.querySelectorAll("details")].forEach((one, place) => { one.open = Boolean(open[place]); });
}

async function refresh() {
  if (running) { again = true; return; }
  running = true; again = false;
  const began = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, credentials: "same-origin" });
    if (answer.ok && !answer.redirected) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = parts(page);
      if (page.querySelector("[data-behind]")) soon(3000);
      for (const [id, part] of parts(document)) {
        const next = fresh.get(id);
        if (!next || isInUse(part)) continue;
        localTimes(next);
        if (next.innerHTML === part.innerHTML) continue;
        const focused = part.contains(document.activeElement) ? place(part, document.activeElement) : -1;
        keep(part, next);
        part.replaceChildren(...next.childNodes);
        if (focused >= 0) reachable(part)[focused]?.focus();
      }
    }
  } catch { /* the server is away: the stream says so */ }
  slow = performance.now() - began;
  running = false;
  if (again) soon();
}

function reachable(part) { return [...part.querySelectorAll("a, button, input, summary")]; }
function place(part, element) { return reachable(part).indexOf(element); }

// The slower the server answers, the more seldom it is asked.
function soon(first = 300) {
  if (timer === null) timer = setTimeout(() => { timer = null; refresh(); }, Math.max(first, 10 * slow));
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.valueOf())) time.title = at.toLocaleString() + " (" + time.dateTime + ")";
  }
}

// A browser opens six connections to a server at most: a page that nobody looks at keeps none.
let stream = null;
function listen() {
  if (document.hidden) { stream?.close(); stream = null; return; }
  if (stream !== null) return;
  const job = document.querySelector("[data-job]")?.dataset.job;
  stream = new EventSource(document.documentElement.dataset.root + "/changes");
  stream.onopen = () => { told.textContent = "live"; told.classList.add("on"); };
  stream.onerror = () => { told.textContent = "not live"; told.classList.remove("on"); };
  stream.addEventListener("changed", (event) => {
    const ids = JSON.parse(event.data).ids;
    if (!job) soon(1000);
    else if (ids === null) soon(500);
    else if (ids.includes(job)) soon(100);
  });
}

document.addEventListener("change", ({ target }) => {
  const boxes = target.id === "all" ? document.querySelectorAll("input[name=job]") : target.name === "job" ? [target] : [];
  for (const box of boxes) choose(box, target.checked);
});
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

localTimes(document);
if (document.querySelector("[data-live]")) {
  listen();
  document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) soon(0); });
  addEventListener("pagehide", () => stream?.close());
  setInterval(() => { if (!document.hidden) soon(); }, 10000);
} else {
  told.textContent = "";
  told.className = "";
}

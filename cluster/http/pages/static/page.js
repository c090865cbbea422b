// Keeps a page up to date while somebody looks at it: fetches the same page again and puts in what has changed.
// Without it everything can be read, by loading again.
"use strict";

(() => {
  const main = document.getElementById("main");
  const every = Number(main?.dataset.every || 0) * 1000;
  if (!every) return;
  const said = document.getElementById("said");
  const stale = document.getElementById("stale");
  document.documentElement.classList.add("live");
  let waiting = 0, failures = 0, under = null;

  const words = (root) => (root.querySelector("[data-say]")?.textContent || "").replace(/\s+/g, " ").trim();

  // Somebody fills in a form there, or has marked text: it is put in once they have done.
  const inUse = (part) => {
    const focus = document.activeElement;
    if (part.contains(focus) && focus.matches("input, select, textarea")) return true;
    const marked = document.getSelection();
    return Boolean(marked && !marked.isCollapsed && marked.anchorNode && part.contains(marked.anchorNode));
  };

  // Where the focus is, so that the same link or button has it afterwards: by its place among those of its part.
  const focusable = "a[href], button, summary, [tabindex]";

  const put = (part, fresh) => {
    const open = [...part.querySelectorAll("details[open][id]")].map((each) => each.id);
    const scrolled = [...part.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
    const focus = part.contains(document.activeElement) ? document.activeElement : null;
    const index = focus ? [...part.querySelectorAll(focusable)].indexOf(focus) : -1;
    const key = focus && (focus.getAttribute("href") || focus.textContent);
    part.className = fresh.className;
    part.replaceChildren(...document.importNode(fresh, true).childNodes);
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    [...part.querySelectorAll(".scroll")].forEach((each, at) => {
      if (scrolled[at]) [each.scrollLeft, each.scrollTop] = scrolled[at];
    });
    if (focus) {
      const all = [...part.querySelectorAll(focusable)];
      const same = all.find((each) => (each.getAttribute("href") || each.textContent) === key);
      (same || all[index] || main).focus({ preventScroll: true });
    }
  };

  const show = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const before = words(document);
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (!other || inUse(part)) continue;
      const here = part.cloneNode(true);
      for (const each of here.querySelectorAll("details[open]")) each.removeAttribute("open");
      if (!here.isEqualNode(other)) put(part, other);
    }
    document.title = fresh.title;
    const now = words(document);
    if (now && now !== before) said.textContent = now;
  };

  const late = (why) => {
    failures += 1;
    if (failures < 2) return;
    const text = `${why} What is shown is of ${document.querySelector("#as-of time")?.textContent || "before"}.`;
    if (stale.textContent !== text) stale.textContent = said.textContent = text;
    stale.hidden = false;
  };

  const look = async () => {
    under = new AbortController();
    const timer = setTimeout(() => under.abort(), 15000);
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", signal: under.signal, redirect: "follow" });
      if (answer.ok && new URL(answer.url).pathname === location.pathname) {
        show(await answer.text());
        failures = 0;
        stale.hidden = true;
        stale.textContent = "";
      } else if (answer.redirected) {
        late("You are signed out: load the page again.");
      } else {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        late(`${fresh.querySelector("h1")?.textContent.trim() || "The server does not answer as it should"}.`);
      }
    } catch {
      late("This device does not answer.");
    } finally {
      clearTimeout(timer);
    }
    again();
  };

  const again = () => {
    clearTimeout(waiting);
    if (!document.hidden) waiting = setTimeout(look, every * Math.min(1 + failures, 5));
  };

  document.addEventListener("visibilitychange", () => {
    clearTimeout(waiting);
    if (!document.hidden) look();
  });
  again();
})();

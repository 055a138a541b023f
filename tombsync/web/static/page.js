// Keeps an open status page up to date. The page is complete without it.
"use strict";

(() => {
  const REFRESH_MS = Number(document.body.dataset.refreshS) * 1000;
  const ANSWER_WITHIN_MS = 10_000;
  const live = document.getElementById("live");
  const lost = document.getElementById("lost");
  const updated = document.getElementById("updated");
  let lastAnswer = clock(new Date());
  let timer = 0;
  let asking = false;

  function clock(date) {
    return date.toISOString().slice(11, 19);
  }

  // Changes only what differs, so that focus, selection, scroll positions and open details stay as they are.
  function update(now, next) {
    if (now.isEqualNode(next)) {
      return;
    }
    if (now.nodeType !== Node.ELEMENT_NODE) {
      now.nodeValue = next.nodeValue;
      return;
    }
    for (const { name } of [...now.attributes, ...next.attributes]) {
      if (now.localName === "details" && name === "open") {
        continue; // the reader's own
      }
      if (!next.hasAttribute(name)) {
        now.removeAttribute(name);
      } else if (now.getAttribute(name) !== next.getAttribute(name)) {
        now.setAttribute(name, next.getAttribute(name));
      }
    }
    updateChildren(now, next);
  }

  function updateChildren(now, next) {
    const known = new Map();
    for (const child of now.children) {
      if (child.id) {
        known.set(child.id, child);
      }
    }
    const wanted = new Set([...next.children].map((child) => child.id));
    for (const [id, child] of known) {
      if (!wanted.has(id)) {
        child.remove();
      }
    }
    let place = now.firstChild;
    for (const child of [...next.childNodes]) {
      if (child.id && known.has(child.id)) {
        const old = known.get(child.id);
        if (old === place) {
          place = place.nextSibling;
        } else {
          now.insertBefore(old, place);
        }
        update(old, child);
      } else if (place && !place.id && !child.id && place.nodeType === child.nodeType && place.nodeName === child.nodeName) {
        const old = place;
        place = place.nextSibling;
        update(old, child);
      } else {
        if (child.id) {
          child.classList.add("fresh");
        }
        now.insertBefore(document.importNode(child, true), place);
      }
    }
    while (place) {
      const old = place;
      place = place.nextSibling;
      old.remove();
    }
  }

  function tell(text) {
    if (lost.textContent !== text) {
      lost.textContent = text;
    }
  }

  async function refresh() {
    if (asking) {
      return;
    }
    asking = true;
    clearTimeout(timer);
    try {
      const answer = await fetch("live", { signal: AbortSignal.timeout(ANSWER_WITHIN_MS) });
      if (!answer.ok) {
        throw new Error(`HTTP status ${answer.status}`);
      }
      const text = await answer.text();
      updateChildren(live, new DOMParser().parseFromString(text, "text/html").body);
      lastAnswer = clock(new Date());
      updated.textContent = `Updates by itself, last at ${lastAnswer}`;
      tell("");
    } catch (error) {
      tell(`This node does not answer (${error.message}). What is shown is of ${lastAnswer} UTC.`);
    } finally {
      asking = false;
      wait();
    }
  }

  function wait() {
    clearTimeout(timer);
    if (!document.hidden) {
      timer = setTimeout(refresh, REFRESH_MS);
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
    } else {
      refresh();
    }
  });
  wait();
})();

// Keeps the page as the study is: asks its own server every two seconds and changes what has changed.
"use strict";
(() => {
  const view = window.isoflopPage;
  const token = new URLSearchParams(location.search).get("token") || "";
  const state = document.getElementById("live-state");
  const drawn = {};
  let version = "";
  let cost = 0;
  let fresh = Date.now();

  function tell(text) {
    if (state.textContent !== text) state.textContent = text;
  }

  function replace(id, html) {
    const element = document.getElementById(id);
    if (element.dataset.shown === html) return;
    const scroll = element.querySelector(".scroll");
    const at = scroll ? [scroll.scrollTop, scroll.scrollLeft] : null;
    const sorted = element.querySelector("th[aria-sort]");
    const open = [...element.querySelectorAll("details")].map((d) => d.open);
    // The server has escaped every text in it, and the policy of the page runs no script that it does not know.
    element.innerHTML = html;
    element.dataset.shown = html;
    element.querySelectorAll("table").forEach(view.alignHeads);
    element.querySelectorAll("table.sortable").forEach(view.sortable);
    element.querySelectorAll("details").forEach((d, i) => { if (i < open.length) d.open = open[i]; });
    if (sorted) {
      const button = element.querySelectorAll("th button")[sorted.cellIndex];
      button.click();
      if (sorted.getAttribute("aria-sort") === "descending") button.click();
    }
    if (at && element.querySelector(".scroll")) {
      [element.querySelector(".scroll").scrollTop, element.querySelector(".scroll").scrollLeft] = at;
    }
  }

  function show(data) {
    document.title = data.title;
    for (const [id, text] of Object.entries(data.text)) document.getElementById(id).textContent = text;
    for (const [id, html] of Object.entries(data.html)) replace(id, html);
    let count = 0;
    for (const section of document.querySelectorAll("section[data-slot]")) {
      section.hidden = !(section.id in data.slots);
      if (section.hidden) continue;
      const [caption, alt] = data.slots[section.id];
      section.querySelector(".count").textContent = "Figure " + ++count;
      section.querySelector("figcaption").textContent = caption;
      section.querySelector("[data-figure]").setAttribute("aria-label", alt);
    }
    const changed = new Set(Object.keys(data.figures).filter((key) => drawn[key] !== JSON.stringify(data.figures[key])));
    for (const key of changed) drawn[key] = JSON.stringify(data.figures[key]);
    view.page.figures = data.figures;
    view.redraw(undefined, changed);
    version = data.version;
  }

  async function ask() {
    try {
      const answer = await fetch("data?token=" + encodeURIComponent(token) + "&since=" + version, { cache: "no-store" });
      if (answer.status === 403) return tell("This address has no valid token: the watch was started anew. Open the address it printed.");
      if (answer.status === 200) {
        const data = await answer.json();
        if (data.trouble) tell("The study's folder cannot be read now: " + data.trouble);
        else {
          const began = performance.now();
          show(data);
          cost = performance.now() - began;
          fresh = Date.now();
        }
      }
      if (answer.ok) tell("live · last change " + Math.round((Date.now() - fresh) / 1000) + " s ago");
    } catch (error) {
      tell("The watch has ended or cannot be reached; the page shows what it knew last.");
    }
    // A slow machine draws less often: at most a fifth of its time goes into drawing.
    setTimeout(ask, document.hidden ? 10000 : Math.max(2000, 5 * cost));
  }

  ask();
})();

// Draws the figures of the page in the reader's theme, lets tables be sorted and data be taken away.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const COLOR_KEYS = new Set(["color", "fillcolor", "colorscale", "bgcolor", "bordercolor", "gridcolor", "linecolor", "tickcolor"]);
  let theme = page.themes[dark.matches ? "dark" : "light"];

  // "@family0" is a name, "@family0/0.2" a name with an opacity.
  function color(name) {
    const [key, alpha] = name.slice(1).split("/");
    const hex = theme[key];
    if (alpha === undefined) return hex;
    return "rgba(" + [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",") + "," + alpha + ")";
  }

  function themed(value, key) {
    if (typeof value === "string") return COLOR_KEYS.has(key) && value[0] === "@" ? color(value) : value;
    if (Array.isArray(value)) return key === "x" || key === "y" ? value.slice() : value.map((item) => themed(item, key));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k)]));
  }

  const AXES = 84; // pixels between rows of panels, for the ticks and the title of an axis
  const ASIDE = 100; // and between columns, where ticks are wider
  const LEAST = 200; // of a panel beside another

  // Panels stand beside each other as far as there is room, else below; ticks are thinned, and legends get their lines.
  function arrange(made, width) {
    const { columns, panels, headed, shared, names } = made.meta;
    const margin = made.margin, wide = Math.max(LEAST, width - margin.l - margin.r);
    const across = Math.max(1, Math.min(columns, Math.floor((wide + ASIDE) / (LEAST + ASIDE))));
    const rows = Math.ceil(panels / across), planned = Math.ceil(panels / columns);
    const high = (made.height - margin.t - margin.b - (planned - 1) * AXES) / planned;
    const total = rows * high + (rows - 1) * AXES;
    const share = (1 - (across - 1) * ASIDE / wide) / across;
    const titles = [...made.annotations];
    for (let i = 0; i < panels; i++) {
      const suffix = i ? i + 1 : "", left = (i % across) * (share + ASIDE / wide);
      const top = 1 - Math.floor(i / across) * (high + AXES) / total;
      made["xaxis" + suffix].domain = [left, left + share];
      made["yaxis" + suffix].domain = [Math.max(0, top - high / total), top];
      // Panels that share an axis have its title on the first of each row.
      if (shared) made["yaxis" + suffix].title = i % across ? { text: "" } : { ...made.yaxis.title };
      if (headed[i]) Object.assign(titles.shift(), { x: left, y: top });
      const axis = made["xaxis" + suffix], fits = Math.max(2, Math.floor(share * wide / 58));
      const every = axis.tickvals ? Math.ceil(axis.tickvals.length / fits) : 1;
      for (const key of every > 1 ? ["tickvals", "ticktext"] : []) axis[key] = axis[key].filter((_, k) => k % every === 0);
    }
    const room = names.map((name) => 50 + 7.2 * name.length), title = made.legend && made.legend.title;
    const first = title ? 20 + 7.2 * title.text.length : 0, fits = wide - 16; // wide ticks take some of it
    let more = 0; // height of the legend beyond one line
    if (names.length && first + room.reduce((a, b) => a + b, 0) > fits) {
      more = 28 * (Math.ceil(names.length / Math.max(1, Math.floor(fits / Math.max(...room)))) - 1) + (title ? 20 : 0);
      if (title) title.side = "top";
    }
    margin.t += more;
    made.height = total + margin.t + margin.b;
  }

  function layout(figure, width, room) {
    const made = themed(figure.layout, "");
    made.paper_bgcolor = made.plot_bgcolor = theme.panel;
    made.font = { family: page.font, size: 13, color: theme.soft };
    made.hoverlabel = { align: "left", bgcolor: theme.wash, bordercolor: theme.muted, font: { color: theme.ink } };
    made.modebar = { bgcolor: "rgba(0,0,0,0)", color: theme.muted, activecolor: theme.ink };
    if (made.legend) {
      made.legend.font = { color: theme.ink };
      if (made.legend.title) made.legend.title.font = { color: theme.soft, size: 13 };
    }
    for (const [name, axis] of Object.entries(made)) {
      if (!/^[xy]axis/.test(name)) continue;
      Object.assign(axis, { gridcolor: theme.grid, linecolor: theme.muted, tickcolor: theme.muted, zerolinecolor: theme.muted });
      axis.title = Object.assign(axis.title || {}, { font: { color: theme.ink, size: 13 } });
    }
    arrange(made, width || room);
    // On paper, figures are flatter, so that a page holds three of most of them and has no blank foot.
    if (width) Object.assign(made, { width, height: Math.round(0.82 * made.height) });
    else made.autosize = true;
    // What the reader has zoomed or hidden stays so when the figure is drawn again.
    made.uirevision = "kept";
    return made;
  }

  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: "isoflop" },
  };

  function drawAll(width, changed) {
    for (const slot of document.querySelectorAll("[data-figure]")) {
      const figure = page.figures[slot.dataset.figure];
      if (!figure || (changed && !changed.has(slot.dataset.figure))) continue;
      const first = !slot.data;
      const made = layout(figure, width, slot.clientWidth);
      if (!first && !width) keepZoom(slot, made);
      Plotly.react(slot, themed(figure.data, "data"), made, config);
      slot.planned = figure.layout;
      if (first) slot.on("plotly_relayout", () => retick(slot));
      else retick(slot);
      if (slot.parentNode.querySelector("details[open]")) fillDetails(slot.parentNode.querySelector("details"), figure, slot.dataset.figure);
    }
  }

  const same = (a, b) => a.every((value, i) => Math.abs(value - b[i]) < 1e-6);

  // `uirevision` keeps a zoom only while the planned range stays the same; new runs widen it.
  function keepZoom(slot, made) {
    for (const [name, before] of Object.entries(slot.planned)) {
      if (!/^[xy]axis/.test(name) || !before.range || !made[name] || !slot.layout[name]) continue;
      const now = slot.layout[name].range;
      if (!same(now, before.range)) Object.assign(made[name], { range: [...now], autorange: false });
    }
  }

  // Chosen ticks fit the first view; a zoomed axis chooses its own.
  function retick(slot) {
    const figure = page.figures[slot.dataset.figure];
    const update = {};
    for (const [name, planned] of Object.entries(figure.layout)) {
      if (!/^[xy]axis/.test(name) || planned.tickmode !== "array") continue;
      const home = same(slot.layout[name].range, planned.range);
      const mode = home ? "array" : "auto";
      if (slot.layout[name].tickmode !== mode) update[name + ".tickmode"] = mode;
    }
    if (Object.keys(update).length) Plotly.relayout(slot, update);
  }

  const plain = (text) => String(text).replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");

  function table(figure) {
    const rows = [["panel", "series", "x", "y", "note"]];
    for (const trace of figure.data) {
      const name = plain(trace.name || trace.legendgroup || "");
      const panel = Number((trace.xaxis || "x").slice(1) || 1);
      (trace.x || []).forEach((x, i) => {
        const note = Array.isArray(trace.text) ? trace.text[i] : trace.text || "";
        rows.push([panel, name, x, trace.y[i], plain(note)].map((cell) => (cell === null || cell === undefined ? "" : cell)));
      });
    }
    return rows;
  }

  function csv(rows) {
    // A cell that a spreadsheet would take for a formula is given as text.
    const cell = (value) => {
      let text = String(value);
      if (typeof value === "string" && /^[=+@\t\r-]/.test(text)) text = "'" + text;
      return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
    };
    return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  function fillDetails(details, figure, key) {
    const rows = table(figure);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Save as CSV";
    button.addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
      link.download = key + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    const made = document.createElement("table");
    rows.slice(0, 500).forEach((row, i) => {
      const line = made.insertRow();
      for (const value of row) {
        const cell = document.createElement(i ? "td" : "th");
        cell.textContent = value;
        line.append(cell);
      }
    });
    const box = details.querySelector(".scroll");
    box.replaceChildren(made);
    if (rows.length > 501) {
      const rest = document.createElement("p");
      rest.textContent = "The first 500 of " + (rows.length - 1) + " points; the file has all.";
      box.append(rest);
    }
    details.querySelectorAll("button").forEach((old) => old.remove());
    box.before(button);
  }

  function sortable(element) {
    const body = element.tBodies[0];
    [...element.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      // Browsers do not print a button again on the next page; the style sheet prints this instead.
      head.dataset.label = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => {
          const cell = row.cells[column];
          return cell.dataset.order === undefined ? cell.textContent : Number(cell.dataset.order);
        };
        const compare = (a, b) =>
          typeof a === "number" && typeof b === "number" ? a - b
            : typeof a === typeof b ? a.localeCompare(b, "en", { numeric: true })
            : typeof a === "number" ? -1 : 1;
        const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
  }

  function alignHeads(element) {
    const first = element.tBodies[0] && element.tBodies[0].rows[0];
    if (!first) return;
    [...first.cells].forEach((cell, i) => {
      if (cell.classList.contains("number") && element.tHead) element.tHead.rows[0].cells[i].classList.add("number");
    });
  }

  // All figures, or those whose keys are in the set `changed`.
  function redraw(width, changed) {
    theme = page.themes[dark.matches && !width ? "dark" : "light"];
    drawAll(width, changed);
  }

  redraw();
  document.querySelectorAll("details.data").forEach((details) => {
    const key = details.parentNode.querySelector("[data-figure]").dataset.figure;
    details.addEventListener("toggle", () => details.open && page.figures[key] && fillDetails(details, page.figures[key], key));
  });
  document.querySelectorAll("main table").forEach(alignHeads);
  document.querySelectorAll("table.sortable").forEach(sortable);
  dark.addEventListener("change", () => redraw());
  let shown = document.body.clientWidth, printing = false;
  addEventListener("resize", () => {
    if (printing || document.body.clientWidth === shown) return;
    shown = document.body.clientWidth;
    redraw();
  });
  // Paper is light. The style sheet scales these 920 px to the width of A4 within its margins.
  addEventListener("beforeprint", () => {
    document.querySelectorAll(".warnings details:not([open])").forEach((d) => { d.open = true; d.dataset.folded = ""; });
    printing = true;
    redraw(920);
  });
  addEventListener("afterprint", () => {
    printing = false;
    document.querySelectorAll("details[data-folded]").forEach((d) => { d.open = false; delete d.dataset.folded; });
    redraw();
  });

  window.isoflopPage = { page, redraw, sortable, alignHeads };
})();

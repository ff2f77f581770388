const every = (selector, within = document) => [...within.querySelectorAll(selector)];

// One of several parts is shown.
for (const bar of every("[data-choice]")) {
  const buttons = every("button", bar);
  const choose = chosen => {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", button === chosen);
      for (const part of every(`[data-part="${button.dataset.show}"]`)) part.hidden = button !== chosen;
    }
  };
  for (const button of buttons) button.addEventListener("click", () => choose(button));
  bar.hidden = buttons.length < 2;
  choose(buttons.find(button => button.getAttribute("aria-pressed") === "true"));
}

// The words over each column: a narrow screen and paper show them beside every number instead.
const columns = table => {
  const grid = [];
  [...table.tHead.rows].forEach((row, y) => {
    let x = 0;
    for (const head of row.cells) {
      grid[y] ||= [];
      while (grid[y][x]) x++;
      for (let v = 0; v < head.rowSpan; v++) for (let u = 0; u < head.colSpan; u++) (grid[y + v] ||= [])[x + u] = head;
      x += head.colSpan;
    }
  });
  return grid[0].map((_, x) => [...new Set(grid.map(row => row[x]))]);
};
for (const table of every("table")) {
  const heads = columns(table);
  const text = head => [...head.childNodes].map(node => node.textContent.trim()).join(" ");
  const words = heads.map(list => list.map(text).join(", "));
  const own = heads.map(list => text(list[list.length - 1]));
  const group = heads.map((list, x) => list.length > 1 && list[0] !== heads[x - 1]?.[0] ? list[0].textContent.trim() : "");
  for (const body of table.tBodies) for (const row of body.rows) [...row.cells].forEach((cell, x) => {
    cell.dataset.head = words[x];
    cell.dataset.own = own[x];
    if (group[x]) cell.dataset.group = group[x];
  });
  heads.forEach((list, x) => { if (group[x]) list[1].dataset.group = group[x]; });
  if (!table.classList.contains("sortable")) continue;
  const body = table.tBodies[table.tBodies.length - 1];
  const key = (row, x) => {
    const text = (row.cells[x].querySelector("b") || row.cells[x]).textContent.trim();
    return x ? parseFloat(text) : text;
  };
  const last = heads.map(list => list[list.length - 1]);
  last.forEach((head, x) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by " + words[x];
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), down = now ? now === "ascending" : x > 0;
      for (const other of last) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const missing = value => Number.isNaN(value) ? 1 : 0;
      body.append(...[...body.rows].sort((one, two) => {
        const a = key(one, x), b = key(two, x);
        return missing(a) - missing(b) || (missing(a) ? 0 : (down ? -1 : 1) * (a < b ? -1 : a > b ? 1 : 0));
      }));
    });
  });
}

// A legend hides methods in all plots of its model, and points one out under the mouse or the focus.
for (const button of every("[data-toggle]")) {
  const plots = every(`[data-model="${button.dataset.of}"]`);
  const marks = plots.flatMap(plot => every(`[data-line="${button.dataset.toggle}"]`, plot));
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    for (const same of every(`[data-of="${button.dataset.of}"][data-toggle="${button.dataset.toggle}"]`)) {
      same.setAttribute("aria-pressed", shown);
    }
    for (const mark of marks) mark.classList.toggle("off", !shown);
  });
  const light = on => {
    for (const plot of plots) plot.classList.toggle("lit", on);
    for (const mark of marks) mark.classList.toggle("at", on);
  };
  for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => light(true));
  for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => light(false));
}

// Which of the overlays are shown.
for (const form of every("[data-filters]")) {
  const area = document.getElementById(form.dataset.filters), value = name => form.elements[name].value;
  form.hidden = false;
  form.addEventListener("input", () => {
    for (const card of every("[data-said]", area)) {
      const said = value("said"), name = value("name");
      card.classList.toggle("filtered", (said && !card.dataset.said.split(" ").includes(said)) || (name && card.dataset.name !== name));
    }
    for (const scene of every("[data-kind]", area)) {
      const kind = value("kind");
      scene.classList.toggle("filtered", (kind && scene.dataset.kind !== kind) || !every("[data-said]:not(.filtered)", scene).length);
    }
  });
  form.addEventListener("submit", event => event.preventDefault());
}

// What a link goes to stands below the bar of links, however many lines that has.
const bar = document.querySelector("nav");
const below = () => { document.documentElement.style.scrollPaddingTop = `${bar.offsetHeight + 12}px`; };
addEventListener("resize", below);
below();

// Paper shows what is folded away.
let opened = [];
addEventListener("beforeprint", () => {
  opened = every("details:not([open])");
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });

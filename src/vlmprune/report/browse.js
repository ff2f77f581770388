// Every question, filtered, some at a time.
for (const area of every("[data-browse]")) {
  const { rows, texts, questions } = JSON.parse(area.querySelector("script").textContent);
  const [form, list, more, count] = ["form", ".list", ".more", "p"].map(one => area.querySelector(one));
  const make = (tag, name, text) => Object.assign(document.createElement(tag), { className: name, textContent: text });
  const pick = (name, options) => form.elements[name].append(...["all", ...options].map((text, k) => new Option(text, k ? k - 1 : "")));
  const tasks = [...new Set(questions.map(one => one[0]))];
  pick("task", tasks.map(task => texts[task]));
  pick("row", rows.map(row => row.join(", ")));
  const kinds = (right, before) => right === "-" ? []
    : [right === "1" ? "right" : "wrong", ...(+right === before ? [] : ["flipped", right === "1" ? "repaired" : "broken"])];
  let left = [];
  const filter = () => {
    const of = name => form.elements[name].value, said = of("said"), word = of("text").trim().toLowerCase();
    const wanted = of("row") === "" ? rows.map((_, k) => k) : [+of("row")];
    left = questions.flatMap(one => {
      if (of("task") !== "" && one[0] !== tasks[+of("task")]) return [];
      if (word && ![...one.slice(1, 5), ...one[7]].some(text => text >= 0 && texts[text].toLowerCase().includes(word))) return [];
      const at = wanted.filter(k => one[8][k] !== "-" && (!said || kinds(one[8][k], one[5]).includes(said)));
      return at.length ? [[one, at]] : [];
    });
    count.textContent = `${left.length} of ${questions.length} questions`;
    list.replaceChildren();
    show();
  };
  const reply = (name, text, kind) => {
    const item = make("li", "", ""), said = make("span", kind[0], texts[text].trim() || "(nothing)");
    item.append(make("small", "", name), said);
    if (kind.length > 1) item.append(make("em", "", kind[2]));
    return item;
  };
  const card = ([one, at]) => {
    const whole = make("article", "card", ""), replies = make("ul", "", "");
    if (one[6]) {
      const [svg, use] = ["svg", "use"].map(tag => document.createElementNS("http://www.w3.org/2000/svg", tag));
      const [width, height] = ["width", "height"].map(name => document.getElementById(one[6]).getAttribute(name));
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("class", "thumb");
      use.setAttribute("href", `#${one[6]}`);
      svg.append(use);
      whole.append(svg);
    }
    const words = make("div", "", "");
    words.append(make("p", "question", texts[one[2]]), make("small", "", `${texts[one[0]]}, ${texts[one[1]]}; answer: ${texts[one[3]]}`));
    replies.append(reply("vanilla", one[4], [one[5] ? "right" : "wrong"]));
    replies.append(...at.map(k => reply(rows[k].join(", "), one[7][k], kinds(one[8][k], one[5]))));
    words.append(replies);
    whole.append(words);
    return whole;
  };
  const show = () => {
    list.append(...left.splice(0, 10).map(card));
    more.hidden = !left.length;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", event => event.preventDefault());
  more.addEventListener("click", show);
  area.hidden = false;
  filter();
}

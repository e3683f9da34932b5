"use strict";
// Asks the service about a history that is typed in. Labels are only ever set as text.
(function () {
  const FUTURE = 50; // events of a simulated future, at most
  const WEEK = "7 days"; // its length
  const TOP = 8; // behaviors shown
  const EACH = 3; // of each group
  const SPANS = [["days", 86400], ["hours", 3600], ["minutes", 60], ["seconds", 1]];
  const SOON = 400; // milliseconds without typing until the model is asked
  const MINUTE = 60000;
  const NEAREST = 5; // similar users shown
  const LAST = 12; // events of an example user shown
  const byId = (id) => document.getElementById(id);
  // What a model may be given of the event that it predicts -> how a request says it.
  const GIVEN = {time: "at", location: "location"};
  const LISTS = ["among", "exclude"]; // filters that are lists of behaviors
  const state = {
    columns: [], labels: {}, given: [], seed: 0, waiting: 0, asked: 0,
    among: [], exclude: [], why: false,
    examples: [], scaled: null,
  };

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  async function ask(path, body) {
    const options = body && {
      method: "POST",
      headers: {"content-type": "application/json"},
      body: JSON.stringify(body),
    };
    const response = await fetch(path, options);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error ? answer.error.message : response.statusText);
    return answer;
  }

  // The user's clock as the text that the service reads: 2026-01-31T18:30
  function clock(moment) {
    return new Date(moment - new Date(moment).getTimezoneOffset() * MINUTE).toISOString().slice(0, 16);
  }

  function addRow(event) {
    const row = byId("history").tBodies[0].insertRow();
    for (const column of state.columns) {
      const input = element("input");
      input.setAttribute("aria-label", column.name);
      input.value = event[column.name] === undefined ? "" : event[column.name];
      if (column.role === "time") input.type = "datetime-local";
      else if (state.labels[column.role]) input.setAttribute("list", "labels-" + column.role);
      input.addEventListener("input", later);
      row.insertCell().append(input);
    }
    const remove = element("button", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", "remove this event");
    remove.addEventListener("click", () => {
      row.remove();
      later();
    });
    row.insertCell().append(remove);
  }

  function events() {
    return Array.from(byId("history").tBodies[0].rows, (row, number) => {
      const event = {};
      state.columns.forEach((column, place) => {
        const value = row.cells[place].firstChild.value;
        event[column.name] = column.role === "order" ? number : value === "" ? null : value;
      });
      return event;
    }).filter((event) => event[timeColumn()]);
  }

  function timeColumn() {
    return state.columns.find((column) => column.role === "time").name;
  }

  // The fields in which the time and the place that are asked about are told.
  function addAsked(given) {
    for (const name of given) {
      const label = element("label", name === "time" ? "at this time" : "at this place");
      const input = element("input");
      input.id = label.htmlFor = "asked-" + name;
      if (name === "time") {
        input.type = "datetime-local";
        input.value = clock(Date.now());
      } else {
        input.setAttribute("list", "labels-" + name);
        input.value = (state.labels[name] || [""])[0];
      }
      input.addEventListener("input", later);
      byId("asked").append(label, input);
    }
  }

  function askedAbout() {
    const told = state.given.map((name) => [GIVEN[name], byId("asked-" + name).value || null]);
    return Object.fromEntries(told);
  }

  // Behaviors that a filter names, each a button that takes it away.
  function showChips(name) {
    const chips = state[name].map((label) => {
      const chip = element("button", label + " ×");
      chip.type = "button";
      chip.setAttribute("aria-label", "remove " + label);
      chip.addEventListener("click", () => {
        state[name] = state[name].filter((other) => other !== label);
        showChips(name);
        later();
      });
      return chip;
    });
    byId("chips-" + name).replaceChildren(...chips);
  }

  function addFilters() {
    for (const name of LISTS) {
      byId(name).addEventListener("change", () => {
        const label = byId(name).value.trim();
        byId(name).value = "";
        if (!label || state[name].includes(label)) return;
        state[name].push(label);
        showChips(name);
        later();
      });
      showChips(name);
    }
    byId("exclude_seen").addEventListener("change", later);
    byId("per_group").addEventListener("input", later);
    byId("why").addEventListener("click", () => {
      state.why = !state.why;
      later();
    });
  }

  // "behavior = group", one a line; a behavior may hold an equals sign, a group none.
  function groups() {
    const lines = byId("per_group").value.split("\n").map((line) => {
      const place = line.lastIndexOf("=");
      return [line.slice(0, place).trim(), line.slice(place + 1).trim(), place];
    });
    return Object.fromEntries(lines.filter(([label, group, place]) => place > 0 && label && group));
  }

  function filters() {
    const chosen = {};
    for (const name of LISTS) if (state[name].length) chosen[name] = state[name];
    if (byId("exclude_seen").checked) chosen.exclude_seen = true;
    if (Object.keys(groups()).length) chosen.per_group = groups();
    return chosen;
  }

  // The filters in the address, so that a link or a reload keeps them.
  function keep() {
    const kept = new URLSearchParams();
    for (const name of LISTS) state[name].forEach((label) => kept.append(name, label));
    if (byId("exclude_seen").checked) kept.append("exclude_seen", "1");
    if (byId("per_group").value.trim()) kept.append("per_group", byId("per_group").value.trim());
    if (state.why) kept.append("why", "1");
    const text = kept.toString();
    history.replaceState(null, "", text ? "#" + text : location.pathname);
  }

  function readKept() {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const name of LISTS) state[name] = [...new Set(kept.getAll(name))];
    byId("exclude_seen").checked = kept.has("exclude_seen");
    byId("per_group").value = kept.get("per_group") || "";
    state.why = kept.has("why");
  }

  function later() {
    clearTimeout(state.waiting);
    state.waiting = setTimeout(show, SOON);
  }

  async function show() {
    const users = [{id: "you", events: events()}];
    const asked = ++state.asked;
    keep();
    byId("why").setAttribute("aria-pressed", String(state.why));
    if (!users[0].events.length) {
      byId("next").replaceChildren();
      byId("future").replaceChildren();
      showWhen(null);
      byId("similar").hidden = true;
      return;
    }
    try {
      const chosen = filters();
      const top_k = Math.min(chosen.per_group ? EACH : TOP, state.behaviors);
      const about = {users: [{...users[0], ...askedAbout()}], top_k, ...chosen};
      const next = await ask("v1/predict", about);
      if (asked !== state.asked) return;
      showNext(next);
      const why = state.why ? await ask("v1/explain", about) : null;
      if (asked !== state.asked) return;
      showWhy(why && why.users[0]);
      const future = await simulated(users);
      if (asked !== state.asked) return;
      showFuture(future);
      // last: the first time, a counted log learns its gaps
      const when = state.times ? await ask("v1/when", {users, top_k: 1}) : null;
      if (asked !== state.asked) return;
      showWhen(when && when.users[0]);
      const nearest = await similar(users[0].events);
      if (asked !== state.asked) return;
      showSimilar(nearest);
      byId("error").textContent = "";
    } catch (error) {
      byId("error").textContent = error.message;
    }
  }

  function showNext(answer) {
    const parts = [];
    let last;
    for (const {behavior, probability, group} of answer.users[0].behaviors) {
      if (group !== undefined && group !== last) parts.push(element("span", group, "group"));
      last = group;
      const bar = element("div", undefined, "bar");
      const filled = element("i");
      filled.style.width = (100 * probability).toFixed(1) + "%";
      bar.append(filled);
      const share = element("span", (100 * probability).toFixed(1) + " %", "share");
      parts.push(element("span", behavior), bar, share);
    }
    if (!parts.length) parts.push(element("span", "No behavior passes the filters.", "group"));
    byId("next").replaceChildren(...parts);
    const unknown = Object.entries(answer.unknown).filter(([, number]) => number);
    byId("unknown").textContent = unknown.length
      ? "Never seen in training: " + unknown.map(([name, number]) => number + " × " + name).join(", ")
      : "";
  }

  // What carried the most probable behavior, strongest first; null hides it.
  function showWhy(found) {
    byId("reasons").hidden = !found || found.behavior === null;
    if (byId("reasons").hidden) return;
    byId("because").textContent = found.behavior + ": " + (found.because || "no single reason") + ".";
    const parts = [];
    const list = (title, rows) => {
      if (rows.length) parts.push(element("p", title, "day"));
      for (const [name, value] of rows) {
        parts.push(element("span", name), element("span", (value > 0 ? "+" : "") + value.toFixed(2), "share"));
      }
    };
    const experts = found.experts.map(({expert, adds}) => [expert.replaceAll("_", " "), adds]);
    list("Contribution of each count (logits)", experts);
    list("Effect of removing each event (log-probability)", found.events.map(({event, effect}) => [event, -effect]));
    byId("carried").replaceChildren(...parts);
  }

  // Seconds in words; null: longer than any gap that was seen.
  function span(seconds) {
    if (seconds === null) return "longer than any gap seen in training";
    const [name, size] = SPANS.find(([, size]) => seconds >= size) || SPANS[SPANS.length - 1];
    return (seconds / size).toPrecision(2) * 1 + " " + name;
  }

  function showWhen(found) {
    byId("when").textContent = found
      ? "The median time to the next event is " + span(found.median_s) + "; half of the time it is between " +
        span(found.earliest_50_s) + " and " + span(found.latest_50_s) + "."
      : "";
  }

  // The events of a simulated week, or why there are none: not every model can generate.
  async function simulated(users) {
    try {
      const about = {users, steps: FUTURE, until: WEEK, seed: state.seed};
      return (await ask("v1/generate", about)).users[0].events;
    } catch (error) {
      return error.message;
    }
  }

  function showFuture(found) {
    byId("again").hidden = typeof found === "string";
    if (typeof found === "string") {
      byId("future").replaceChildren(element("p", "No simulation: " + found, "soft"));
      return;
    }
    const parts = [];
    let day = "";
    let list;
    for (const event of found) {
      const [date, time] = String(event[timeColumn()]).split("T");
      if (date !== day) {
        day = date;
        const name = new Date(date + "T12:00").toLocaleDateString([], {weekday: "long"});
        list = element("div", undefined, "next");
        parts.push(element("p", name + ", " + date, "day"), list);
      }
      const labels = state.columns.filter((column) => column.role !== "time" && column.role !== "order");
      const text = labels.map((column) => event[column.name]).filter((label) => label !== null);
      list.append(element("time", time.slice(0, 5)), element("span", text.join(" · ")));
    }
    if (!parts.length) parts.push(element("p", "No event within a week this time.", "day"));
    byId("future").replaceChildren(...parts);
  }

  // Example users by the cosine of their vectors with that of these events, the most similar first.
  // Each dimension is scaled by the examples' mean and deviation.
  async function similar(known) {
    if (state.examples.length < 3 || state.given.length) return [];
    const vectors = async (users) => (await ask("v1/embed", {users})).users.map((user) => user.vector);
    if (!state.scaled) {
      const rows = await vectors(state.examples);
      const mean = rows[0].map((_, place) => rows.reduce((sum, row) => sum + row[place], 0) / rows.length);
      const spread = mean.map((center, place) =>
        Math.sqrt(rows.reduce((sum, row) => sum + (row[place] - center) ** 2, 0) / rows.length) || 1);
      const scale = (row) => row.map((value, place) => (value - mean[place]) / spread[place]);
      state.scaled = {scale, rows: rows.map(scale)};
    }
    const own = state.scaled.scale((await vectors([{id: "you", events: known}]))[0]);
    const product = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);
    const cosine = (row) => product(own, row) / (Math.sqrt(product(own, own) * product(row, row)) || 1);
    return state.scaled.rows.map((row, place) => [place, cosine(row)])
      .filter(([place]) => String(place) !== byId("example").value)
      .sort((a, b) => b[1] - a[1]).slice(0, NEAREST);
  }

  function showSimilar(found) {
    byId("similar").hidden = !found.length;
    byId("nearest").replaceChildren(...found.flatMap(([place, cosine]) => {
      const user = element("button", "user " + state.examples[place].id);
      user.type = "button";
      user.addEventListener("click", () => choose(place));
      const bar = element("div", undefined, "bar");
      const filled = element("i");
      filled.style.width = (100 * Math.max(0, cosine)).toFixed(1) + "%";
      bar.append(filled);
      return [user, bar, element("span", cosine.toFixed(2), "share")];
    }));
  }

  // An example user's events in place of those that are shown.
  function choose(place) {
    byId("example").value = String(place);
    clear();
    for (const event of state.examples[place].events.slice(-LAST)) addRow(event);
    show();
  }

  function addExamples(users) {
    state.examples = users;
    byId("choose").hidden = !users.length;
    const none = Object.assign(element("option", "none: events of your own"), {value: ""});
    const options = users.map((user, place) =>
      Object.assign(element("option", "user " + user.id), {value: String(place)}));
    byId("example").replaceChildren(none, ...options);
    byId("example").addEventListener("change", () => {
      if (byId("example").value) choose(Number(byId("example").value));
    });
  }

  // Two frequent events to begin with, five hours apart, and what the model makes of them.
  async function invent() {
    state.seed += 1;
    const begun = [0, 5].map((hours, number) => {
      const event = {[timeColumn()]: clock(Date.now() + (hours - 72) * 60 * MINUTE)};
      for (const column of state.columns) {
        const known = state.labels[column.role] || [];
        const place = (state.seed + number) % Math.min(known.length, 10);
        if (known.length) event[column.name] = known[place];
        if (column.role === "order") event[column.name] = number;
      }
      return event;
    });
    let rest = [];
    try {
      const users = [{id: "you", events: begun}];
      rest = (await ask("v1/generate", {users, steps: 4, seed: state.seed})).users[0].events;
    } catch (error) {
      byId("error").textContent = error.message;
    }
    clear();
    byId("example").value = "";
    for (const event of [...begun, ...rest]) {
      addRow({...event, [timeColumn()]: String(event[timeColumn()]).slice(0, 16)});
    }
    show();
  }

  function clear() {
    byId("history").tBodies[0].replaceChildren();
    byId("next").replaceChildren();
    byId("future").replaceChildren();
    showWhen(null);
  }

  async function begin() {
    const model = await ask("v1/model");
    state.labels = (await ask("v1/labels")).labels;
    state.behaviors = model.behaviors;
    state.columns = Object.entries(model.columns).map(([role, name]) => ({role, name}));
    state.columns.sort((a, b) => (b.role === "time") - (a.role === "time"));
    const head = byId("history").tHead.insertRow();
    for (const {name} of state.columns) head.append(element("th", name));
    for (const [role, labels] of Object.entries(state.labels)) {
      const list = element("datalist");
      list.id = "labels-" + role;
      list.append(...labels.map((label) => Object.assign(element("option"), {value: label})));
      document.body.append(list);
    }
    const predicted = element("datalist");
    predicted.id = "labels-predicted";
    const behaviors = state.labels.behavior || state.labels.event || [];
    predicted.append(...behaviors.map((label) => Object.assign(element("option"), {value: label})));
    document.body.append(predicted);
    state.given = model.given;
    state.times = model.times && !model.given.length;
    addAsked(state.given);
    readKept();
    addFilters();
    byId("about").textContent =
      "This model predicts one of " + model.behaviors.toLocaleString() + " behaviors" +
      (model.looks_back ? " from the last " + model.looks_back + " events." : ".") +
      " Edit the events to see how its predictions change.";
    byId("add").addEventListener("click", () => {
      const known = events();
      const last = known.length ? Date.parse(known[known.length - 1][timeColumn()]) : Date.now();
      addRow({[timeColumn()]: clock(last + 60 * MINUTE)});
    });
    byId("invent").addEventListener("click", invent);
    byId("clear").addEventListener("click", () => {
      clear();
      byId("example").value = "";
      addRow({[timeColumn()]: clock(Date.now())});
    });
    byId("again").addEventListener("click", () => {
      state.seed += 1;
      show();
    });
    addExamples((await ask("v1/examples")).users);
    const sizes = state.examples.map((user) => user.events.length);
    if (sizes.length) choose(sizes.indexOf(Math.max(...sizes)));
    else await invent();
  }

  begin().catch((error) => {
    byId("error").textContent = error.message;
  });
})();

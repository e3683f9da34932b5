"use strict";
// Asks the service about a history that is typed in. Labels are only ever set as text.
(function () {
  const FUTURE = 20; // events of a drawn future
  const TOP = 8; // behaviors shown
  const SOON = 400; // milliseconds without typing until the model is asked
  const MINUTE = 60000;
  const byId = (id) => document.getElementById(id);
  // What a model may be given of the event that it predicts -> how a request says it.
  const GIVEN = {time: "at", location: "location"};
  const state = {columns: [], labels: {}, given: [], seed: 0, waiting: 0, asked: 0};

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
      const label = element("label", name === "time" ? "at the time" : "at the place");
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

  function later() {
    clearTimeout(state.waiting);
    state.waiting = setTimeout(show, SOON);
  }

  async function show() {
    const users = [{id: "you", events: events()}];
    const asked = ++state.asked;
    if (!users[0].events.length) {
      byId("next").replaceChildren();
      byId("future").replaceChildren();
      return;
    }
    try {
      const top_k = Math.min(TOP, state.behaviors);
      const next = await ask("v1/predict", {users: [{...users[0], ...askedAbout()}], top_k});
      if (asked !== state.asked) return;
      showNext(next);
      const future = await ask("v1/generate", {users, steps: FUTURE, seed: state.seed});
      if (asked !== state.asked) return;
      showFuture(future.users[0].events);
      byId("error").textContent = "";
    } catch (error) {
      byId("error").textContent = error.message;
    }
  }

  function showNext(answer) {
    const parts = [];
    for (const {behavior, probability} of answer.users[0].behaviors) {
      const bar = element("div", undefined, "bar");
      const filled = element("i");
      filled.style.width = (100 * probability).toFixed(1) + "%";
      bar.append(filled);
      const share = element("span", (100 * probability).toFixed(1) + " %", "share");
      parts.push(element("span", behavior), bar, share);
    }
    byId("next").replaceChildren(...parts);
    const unknown = Object.entries(answer.unknown).filter(([, number]) => number);
    byId("unknown").textContent = unknown.length
      ? "Not seen in training: " + unknown.map(([name, number]) => number + " × " + name).join(", ")
      : "";
  }

  function showFuture(found) {
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
    byId("future").replaceChildren(...parts);
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
    for (const event of [...begun, ...rest]) {
      addRow({...event, [timeColumn()]: String(event[timeColumn()]).slice(0, 16)});
    }
    show();
  }

  function clear() {
    byId("history").tBodies[0].replaceChildren();
    byId("next").replaceChildren();
    byId("future").replaceChildren();
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
    state.given = model.given;
    addAsked(state.given);
    byId("about").textContent =
      "A model of " + model.behaviors.toLocaleString() + " behaviors" +
      (model.looks_back ? " that looks back " + model.looks_back + " events." : ".") +
      " Change the events, and see what it expects.";
    byId("add").addEventListener("click", () => {
      const known = events();
      const last = known.length ? Date.parse(known[known.length - 1][timeColumn()]) : Date.now();
      addRow({[timeColumn()]: clock(last + 60 * MINUTE)});
    });
    byId("invent").addEventListener("click", invent);
    byId("clear").addEventListener("click", () => {
      clear();
      addRow({[timeColumn()]: clock(Date.now())});
    });
    byId("again").addEventListener("click", () => {
      state.seed += 1;
      show();
    });
    await invent();
  }

  begin().catch((error) => {
    byId("error").textContent = error.message;
  });
})();

// Blind tests: choosing what is tested, running the trials, showing what came out.

function startTests(player) {
  const store = openStorage();
  const { memory } = store;
  const every = [...new Set(data.clips.flatMap((clip) => clip.takes.map((take) => take.run)))];
  let deck = null;
  let [heard, scores, buttons, answers] = [new Set(), new Map(), [], []];
  let begun = 0; // trials that were opened: what is loaded for an earlier one is dropped

  find("tests").hidden = false;

  // Setting up

  function offer() { // what the filters of the table let through, in the choices
    const runs = every.filter(isShown);
    for (const [place, id] of [[0, "test-a"], [1, "test-b"]]) {
      const before = find(id).value;
      find(id).replaceChildren();
      options(find(id), runs.map((run) => [run, runName(run)]));
      find(id).value = runs.includes(before) ? before : runs[Math.min(place, runs.length - 1)];
    }
    const checked = new Set(rated());
    find("test-runs").replaceChildren(...runs.filter((run) => run !== data.reference).map((run, place) => {
      const label = make("label", "check");
      const box = make("input");
      Object.assign(box, { type: "checkbox", value: run, checked: checked.size ? checked.has(run) : place < 4 });
      label.append(box, make("span", "", runName(run)));
      return label;
    }));
    look();
  }

  const kind = () => find("test-kind").value;
  const rated = () => [...find("test-runs").querySelectorAll(":checked")].map((box) => box.value);
  const conditions = () => (KINDS[kind()].rated ? [data.reference, data.anchor, ...rated()] : [find("test-a").value, find("test-b").value]);
  const needed = (runs) => runs.filter((run) => run !== data.anchor); // a clip of 8 kHz has none
  function clipsOf(runs) {
    const places = find("test-scope").value === "one" ? [player.clip] : [...data.clips.keys()];
    return places.filter((clip) => needed(runs).every((run) => takeOf(clip, run)));
  }

  function look() { // what the choices mean, before the first trial
    const { rated: rates, sides } = KINDS[kind()];
    const runs = conditions();
    const clips = clipsOf(runs);
    for (const part of find("test-setup").querySelectorAll("[data-for]")) {
      part.hidden = (part.dataset.for === "rating") !== Boolean(rates);
      for (const input of part.querySelectorAll("input")) input.disabled = part.hidden; // what is hidden bars no start
    }
    find("test-problem").textContent = "";
    const trials = Number(find("test-trials").value);
    const share = Math.min(0.99, Math.max(0.51, Number(find("test-share").value) / 100 || 0.75));
    find("test-outlook").textContent = rates
      ? `${clips.length} clip${clips.length === 1 ? "" : "s"} with ${rated().length} of at most ${MOST_RATED} runs, the hidden reference and a 3.5 kHz low-pass of it as anchor.`
      : outlook(Math.max(1, Math.min(200, trials || 1)), share, sides);
    find("test-levels").textContent = levels(runs.filter((run) => run !== data.anchor), clips);
  }

  function levels(runs, clips) {
    const measured = clips.map((clip) => runs.map((run) => takeOf(clip, run).loudness)).filter((values) => !values.includes(null));
    if (!measured.length || runs.length < 2) return "";
    const apart = Math.max(...measured.map((values) => Math.max(...values) - Math.min(...values)));
    const means = runs.map((run, place) => `${runName(run)} ${decibels(mean(measured.map((values) => values[place])))}`);
    const warns = apart > 0.5 && !find("test-equal").checked;
    find("test-levels").classList.toggle("reason", warns);
    return `Loudness: ${means.join(", ")}; at most ${apart.toFixed(1)} dB apart in a clip.` +
      (warns ? " A difference above 0.5 dB is heard as one of quality: choose equal loudness." : "");
  }

  async function usable(clip, runs, equal) { // why a clip is left out of a test, or an empty text
    const takes = runs.map((run) => takeOf(clip, run)).filter(Boolean);
    if (equal && takes.some((take) => take.loudness === null)) return "have no loudness that could be made equal";
    return (await someIdentical(takes, data.clips[clip].sample_rate)) ? "are bit-identical in two conditions" : "";
  }

  async function begin(event) {
    event.preventDefault();
    const runs = conditions(); // the choices as they are now: they may change while recordings are read
    const [tested, equal, trials] = [kind(), find("test-equal").checked, Number(find("test-trials").value)];
    const listener = find("test-listener").value.trim();
    const { rated: rates, trial } = KINDS[tested];
    const problem = (text) => { find("test-problem").textContent = text; };
    if (rates && !(runs.length > 2 && runs.length <= MOST_RATED + 2)) { problem(`Choose one to ${MOST_RATED} runs to rate.`); return; }
    if (runs[0] === runs[1]) { problem("A and B are the same."); return; }
    const found = clipsOf(runs);
    if (!found.length) { problem("These have no clip in common; choose others."); return; }
    find("test-start").disabled = true;
    problem("Reading the recordings …");
    const reasons = []; // one by one: all clips of twelve conditions do not fit into memory together
    for (const clip of found) reasons.push(await usable(clip, runs, equal).catch(() => "cannot be read"));
    find("test-start").disabled = false;
    const clips = found.filter((clip, place) => !reasons[place]);
    const left = [...new Set(reasons.filter(Boolean))].map((reason) => `${reasons.filter((each) => each === reason).length} of ${found.length} clips ${reason}`).join(", ");
    problem(left && `${left}: left out.`);
    if (!clips.length) return;
    memory.session = {
      kind: tested, test: new Date().toISOString(), listener, equal, runs, done: 0, votes: [],
      trials: dealt(clips, rates ? clips.length : trials).map((clip) => trial(clip, runs)),
    };
    save();
    find("test-result").hidden = true;
    next();
  }

  // Trials

  async function next() {
    const { session } = memory;
    const own = (begun += 1);
    deck?.close();
    deck = null;
    const trial = session.trials[session.done];
    const { signals, about, answers: choices, keys, rated: rates } = KINDS[session.kind];
    const named = trial && data.clips[trial.clip] ? signals(trial, session.runs) : [];
    const takes = named.map(([, run]) => takeOf(trial.clip, run));
    if (!named.length || takes.includes(undefined)) { end(); return; } // done, or the report was made anew without the clip
    player.deck.pause();
    [heard, scores] = [new Set(), new Map()];
    const clip = data.clips[trial.clip];
    find("test-setup").hidden = true;
    find("test-trial").hidden = false;
    find("test-progress").textContent = `Trial ${session.done + 1} of ${session.trials.length} · ${clip.name}${about(session.runs)}`;
    find("test-keys").textContent = `Keys: ${keys} · Space plays or pauses · ← → elsewhere move by a second · [ ] set the loop.`;
    find("test-signals").className = rates ? "ratings" : "choices";
    buttons = named.map(([label], place) => signalButton(label, place));
    find("test-signals").replaceChildren(...(rates ? [scale()] : []), ...buttons.map((button, place) => (rates && place ? rating(button, place) : button)));
    answers = choices.map(([key, text], place) => {
      const button = make("button", rates ? "primary" : "", text);
      button.type = "button";
      button.append(make("kbd", "", key));
      button.addEventListener("click", () => answer(place));
      return button;
    });
    find("test-answers").replaceChildren(...answers);
    update();
    let buffers;
    try {
      buffers = await trimmed(takes, clip.sample_rate);
    } catch {
      end("A recording cannot be read: the test ends here. ");
      return;
    }
    if (own !== begun) return; // ended meanwhile
    const gains = session.equal ? equalGains(takes) : takes.map(() => 1);
    deck = new Deck(clip.sample_rate, buffers[0].length, update);
    buffers.forEach((buffer, place) => deck.put(place, buffer, gains[place]));
    update();
  }

  function signalButton(label, place) {
    const button = make("button", "", label);
    button.type = "button";
    button.addEventListener("click", () => deck?.choose(place));
    return button;
  }

  function scale() {
    const row = make("div", "scale");
    row.append(...GRADES.map((name) => make("span", "", name)));
    row.setAttribute("aria-hidden", "true");
    return row;
  }

  function rating(button, place) {
    const row = make("div", "rating");
    const slider = make("input", "unrated");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, value: 50 });
    slider.setAttribute("aria-label", `Rating of ${button.textContent}`);
    slider.setAttribute("aria-valuetext", "not rated");
    const shown = make("output", "", "–");
    const rate = () => {
      scores.set(place, Number(slider.value));
      slider.classList.remove("unrated");
      slider.setAttribute("aria-valuetext", `${slider.value}, ${grade(slider.value)}`);
      shown.textContent = slider.value;
      update();
    };
    slider.addEventListener("input", rate);
    slider.addEventListener("pointerup", rate); // where it stands already
    slider.addEventListener("focus", () => deck?.choose(place));
    row.append(button, slider, shown);
    return row;
  }

  function update() { // also for each picture of the screen
    const ready = deck && (deck.playing ? heard.add(deck.index) : heard) && KINDS[memory.session.kind].ready(heard, scores, buttons.length);
    find("test-play").disabled = !deck;
    find("test-play").textContent = deck?.playing ? "Pause" : "Play";
    find("test-time").textContent = deck ? clock(deck.position, deck.frames / deck.rate) : "loading …";
    find("test-loop").textContent = deck && (deck.from > 0 || deck.to < deck.frames) ? `loop ${(deck.from / deck.rate).toFixed(1)} to ${(deck.to / deck.rate).toFixed(1)} s` : "";
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", place === (deck?.index ?? 0)));
    for (const button of answers) button.disabled = !ready;
  }

  function region(from, to) { // a loop of a tenth of a second at least
    if (deck && to - from >= deck.rate / 10) deck.repeat(true, from, to);
  }

  function answer(given) {
    const { session } = memory;
    const trial = session.trials[session.done];
    session.done += 1;
    const common = {
      time: new Date().toISOString(), grid: data.grid, listener: session.listener, kind: session.kind, test: session.test,
      trial: session.done, trials: session.trials.length, clip: data.clips[trial.clip].name, loudness: session.equal ? "equal" : "as is",
    };
    session.votes.push(...KINDS[session.kind].votes(trial, session.runs, given, scores).map((vote) => ({ ...common, ...vote })));
    save();
    next();
    if (memory.session) find("test-play").focus();
  }

  function end(remark = "") {
    const { kind: tested, votes } = memory.session;
    begun += 1;
    deck?.close();
    deck = null;
    const again = votes.length ? repeated(votes[0]) : "";
    memory.votes.push(...votes);
    memory.session = null;
    save();
    find("test-setup").hidden = false;
    find("test-trial").hidden = true;
    const { score, head, rows } = votes.length ? KINDS[tested].result(votes) : { score: "No answers were given.", head: [], rows: [] };
    find("test-score").textContent = remark + score + again;
    const row = (cells, tag) => {
      const line = make("tr");
      line.append(...cells.map((cell, place) => make(tag, Number.isNaN(Number(cell)) && typeof rows[0]?.[place] === "string" && Number.isNaN(Number(rows[0][place])) ? "" : "number", cell)));
      return line;
    };
    find("test-head").replaceChildren(row(head, "th"));
    find("test-votes").replaceChildren(...rows.map((cells) => row(cells, "td")));
    find("test-result").hidden = false;
    find("test-result").focus();
    count();
  }

  // What a test of the same two by the same listener before does to p.
  function repeated(vote) {
    const pair = ({ a, b }) => [a, b].sort().join(" ");
    const same = ({ kind: other, listener, ...rest }) => other === vote.kind && listener === vote.listener && pair(rest) === pair(vote);
    const before = new Set(memory.votes.filter(same).map(({ test }) => test)).size;
    return before && KINDS[vote.kind].sides ? ` Test ${before + 1} of these two by this listener: p holds for a test that was chosen beforehand, not for the best of several.` : "";
  }

  function save() {
    store.save();
    find("test-storage").textContent = store.lasting
      ? "Answers stay in this browser until you forget them."
      : "This browser keeps nothing for this page: save the answers before you close it.";
  }

  function count() {
    const kept = memory.votes.length;
    find("test-count").textContent = kept ? `${kept} answer${kept === 1 ? "" : "s"} so far` : "";
    find("test-export").disabled = find("test-forget").disabled = !kept;
  }

  document.addEventListener("audiotok:shown", offer);
  on("test-setup", "submit", begin);
  on("test-setup", "input", look);
  on("clip", "change", look);
  on("test-play", "click", () => deck.toggle());
  on("test-stop", "click", () => end());
  on("test-from", "click", () => region(Math.round(deck.position * deck.rate), deck.to));
  on("test-to", "click", () => region(deck.from, Math.round(deck.position * deck.rate)));
  on("test-whole", "click", () => region(0, deck.frames));
  on("test-export", "click", () => saveVotes(memory.votes));
  on("test-forget", "click", () => {
    if (!confirm(`Forget ${memory.votes.length} answers? Save them first if you need them.`)) return;
    memory.votes = [];
    save();
    count();
  });
  offer();
  save();
  count();
  if (!(memory.session?.kind in KINDS)) memory.session = null; // of a page before, too
  if (memory.session) next(); // the page was closed in the middle of a test
  return {
    get deck() { return deck; },
    get running() { return memory.session !== null; },
    key(key) {
      const chosen = buttons.find((button) => button.textContent[0] === key.toUpperCase());
      const place = KINDS[memory.session.kind].answers.findIndex(([name]) => name === key);
      if (chosen) chosen.click();
      else if (place >= 0) answers[place].click();
      else if (key === "[" || key === "]") find(key === "[" ? "test-from" : "test-to").click();
    },
  };
}

// Blind test (ABX): draws the trials, counts the votes, keeps them in the browser.

function openStorage() {
  const key = `audiotok-abx:${data.grid}`;
  let memory = { votes: [], session: null };
  let lasting = false;
  try {
    memory = { ...memory, ...JSON.parse(localStorage.getItem(key) ?? "{}") };
    localStorage.setItem(key, JSON.stringify(memory));
    lasting = true;
  } catch { /* a browser that keeps nothing for files from disk; the page says so */ }
  const save = () => { if (lasting) localStorage.setItem(key, JSON.stringify(memory)); };
  return { memory, lasting, save };
}

// Chance of at least `correct` of `trials` right answers by guessing.
function binomialP(correct, trials) {
  let sum = 0;
  let term = 0.5 ** trials;
  for (let right = 0; right <= trials; right += 1) {
    if (right >= correct) sum += term;
    term *= (trials - right) / (right + 1);
  }
  return Math.min(1, sum);
}

function draw(count) { // crypto: nobody, the page included, can tell the next one
  const limit = 2 ** 32 - (2 ** 32 % count);
  const value = new Uint32Array(1);
  do crypto.getRandomValues(value); while (value[0] >= limit);
  return value[0] % count;
}

function csv(votes) {
  const columns = ["time", "listener", "test", "trial", "clip", "a", "b", "x", "answer", "correct"];
  const cell = (value) => {
    const text = String(value).replace(/^[=+\-@\t\r]/, "'$&"); // a spreadsheet must not take a name for a formula
    return `"${text.replaceAll('"', '""')}"`;
  };
  return [columns, ...votes.map((vote) => columns.map((name) => vote[name]))]
    .map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

function startTest(player) {
  const store = openStorage();
  const { memory } = store;
  const chooses = document.querySelectorAll("[data-choose]");
  const answers = document.querySelectorAll("[data-answer]");
  let deck = null;
  let heard = false;

  const runs = [...new Set(data.clips.flatMap((clip) => clip.takes.map((take) => take.run)))];
  for (const id of ["abx-a", "abx-b"]) options(find(id), runs.map((run) => [run, runName(run)]));
  find("abx-b").selectedIndex = Math.min(1, runs.length - 1);
  find("abx-storage").textContent = store.lasting
    ? "Votes stay in this browser until you forget them."
    : "This browser keeps nothing for this page: save the votes before you close it.";
  find("abx").hidden = false;

  const sourceOf = (clip, run) => data.clips[clip].takes.find((take) => take.run === run)?.audio;

  function begin(event) {
    event.preventDefault();
    const [a, b] = [find("abx-a").value, find("abx-b").value];
    const places = find("abx-scope").value === "one" ? [player.clip] : data.clips.keys();
    const clips = [...places].filter((clip) => sourceOf(clip, a) && sourceOf(clip, b));
    find("abx-a").setCustomValidity(
      a === b ? "A and B are the same." : clips.length ? "" : "These two have no clip in common; choose others.");
    if (!find("abx-setup").reportValidity()) return;
    const trials = Array.from({ length: Number(find("abx-trials").value) }, () => ({ clip: clips[draw(clips.length)], x: draw(2) }));
    memory.session = { test: new Date().toISOString(), listener: find("abx-listener").value.trim(), a, b, trials, votes: [] };
    store.save();
    find("abx-result").hidden = true;
    next();
  }

  function next() {
    const { a, b, trials, votes } = memory.session;
    deck?.close();
    const trial = trials[votes.length];
    const sources = trial && [sourceOf(trial.clip, a), sourceOf(trial.clip, b)];
    if (!trial || sources.includes(undefined)) { end(); return; } // done, or the report was made anew without the clip
    player.deck.pause();
    heard = false;
    deck = new Deck([sources[0], sources[trial.x], sources[1]], true, update);
    find("abx-setup").hidden = true;
    find("abx-trial").hidden = false;
    find("abx-progress").textContent =
      `Trial ${votes.length + 1} of ${trials.length} · ${data.clips[trial.clip].name} · A: ${runName(a)} · B: ${runName(b)}`;
    update();
  }

  function update() {
    if (!deck) return;
    heard ||= deck.index === 1 && deck.playing;
    find("abx-play").textContent = deck.playing ? "Pause" : "Play";
    find("abx-time").textContent = clock(deck.position, deck.active.duration || 0);
    chooses.forEach((button, index) => button.setAttribute("aria-pressed", index === deck.index));
    for (const button of answers) button.disabled = !heard;
  }

  function answer(given) {
    const { session } = memory;
    const trial = session.trials[session.votes.length];
    const names = [session.a, session.b];
    session.votes.push({
      time: new Date().toISOString(), listener: session.listener, test: session.test, trial: session.votes.length + 1,
      clip: data.clips[trial.clip].name, a: session.a, b: session.b, x: names[trial.x], answer: names[given],
      correct: given === trial.x ? 1 : 0,
    });
    store.save();
    next();
    if (memory.session) find("abx-play").focus();
  }

  function end() {
    const { votes } = memory.session;
    deck?.close();
    deck = null;
    memory.votes.push(...votes);
    memory.session = null;
    store.save();
    find("abx-setup").hidden = false;
    find("abx-trial").hidden = true;
    const correct = votes.reduce((sum, vote) => sum + vote.correct, 0);
    find("abx-score").textContent = votes.length
      ? `${correct} of ${votes.length} correct; by guessing alone this or better has p = ${binomialP(correct, votes.length).toPrecision(3)} (exact binomial, one-sided).`
      : "No votes were given.";
    find("abx-votes").replaceChildren(...votes.map((vote) => {
      const row = make("tr");
      row.append(make("td", "number", vote.trial));
      for (const text of [vote.clip, runName(vote.x), runName(vote.answer), vote.correct ? "yes" : "no"]) row.append(make("td", "", text));
      return row;
    }));
    find("abx-result").hidden = false;
    find("abx-result").focus();
    count();
  }

  function count() {
    const kept = memory.votes.length;
    find("abx-count").textContent = kept ? `${kept} vote${kept === 1 ? "" : "s"} so far` : "";
    find("abx-export").disabled = find("abx-forget").disabled = !kept;
  }

  on("abx-setup", "submit", begin);
  on("abx-setup", "input", () => find("abx-a").setCustomValidity(""));
  on("abx-play", "click", () => deck.toggle());
  on("abx-stop", "click", end);
  chooses.forEach((button, index) => button.addEventListener("click", () => deck.choose(index)));
  answers.forEach((button, index) => button.addEventListener("click", () => answer(index)));
  on("abx-export", "click", () => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([csv(memory.votes)], { type: "text/csv" }));
    link.download = "abx_votes.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  on("abx-forget", "click", () => {
    if (!confirm(`Forget ${memory.votes.length} votes? Save them first if you need them.`)) return;
    memory.votes = [];
    store.save();
    count();
  });
  count();
  if (memory.session) next(); // the page was closed in the middle of a test
  return {
    get deck() { return deck; },
    key: (key) => { if ("axb".includes(key.toLowerCase())) deck.choose("axb".indexOf(key.toLowerCase())); },
  };
}

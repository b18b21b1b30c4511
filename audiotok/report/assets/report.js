// The page's only script: the table sorts and filters, recordings switch at one position, and a blind test counts votes.
// Texts of files reach the page through textContent alone; nothing is fetched, nothing is sent.
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("report-data").textContent);
  const find = (id) => document.getElementById(id);
  const on = (id, event, call) => find(id).addEventListener(event, call);
  const make = (tag, className = "", text = "") => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };
  const options = (select, pairs) => {
    for (const [value, text] of pairs) select.append(new Option(text, value));
  };
  const runName = (run) => (run === data.reference ? "reference" : [data.runs[run], run].filter(Boolean).join(" · "));

  // ---- table -------------------------------------------------------------------------------------------------------

  function startTable() {
    const table = find("runs");
    if (!table) return;
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const headings = [...table.tHead.rows[0].cells];
    const collator = new Intl.Collator("en", { numeric: true });
    const textOf = (row, column) => row.cells[column].dataset.text ?? row.cells[column].textContent;

    function compare(column, sign) {
      if (!headings[column].classList.contains("number")) {
        return (a, b) => sign * collator.compare(textOf(a, column), textOf(b, column));
      }
      const key = (row) => Number.parseFloat(row.cells[column].dataset.key.replace(/inf/, "Infinity"));
      return (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // last, whichever way
        return x === y ? 0 : sign * (x < y ? -1 : 1);
      };
    }

    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.setAttribute("aria-sort", "none"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        body.append(...[...rows].sort(compare(column, descending ? -1 : 1)));
      });
    });

    const form = find("filters");
    const selects = [...form.querySelectorAll("select")];
    const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
    function filter() {
      const wanted = find("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const fits =
          wanted.every((word) => words.get(row).includes(word)) &&
          selects.every((select) => !select.value || textOf(row, select.dataset.column) === select.value);
        row.hidden = !fits;
        shown += fits;
      }
      find("shown").textContent = `${shown} of ${rows.length} shown`;
    }
    form.addEventListener("input", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    filter();
  }

  // ---- recordings of one clip --------------------------------------------------------------------------------------

  class Deck {
    // Several recordings at one position, one of which can be heard. `changed` is called when something has changed.
    constructor(sources, loop, changed) {
      this.index = 0;
      this.players = sources.map((source) => {
        const player = new Audio();
        player.preload = "auto";
        player.loop = loop;
        player.src = source;
        for (const name of ["play", "pause", "ended", "seeked", "timeupdate", "loadedmetadata", "error"]) {
          player.addEventListener(name, () => player === this.active && changed(this));
        }
        return player;
      });
    }
    get active() { return this.players[this.index]; }
    get playing() { return !this.active.paused; }
    get position() { return this.active.currentTime; }
    play() { this.active.play().catch(() => {}); } // refused, or paused before it began: the events tell
    pause() { this.active.pause(); }
    toggle() { if (this.playing) this.pause(); else this.play(); }
    seek(seconds) { this.active.currentTime = Math.max(0, Math.min(seconds, this.active.duration || seconds)); }
    choose(index) {
      if (index === this.index) return;
      const { playing, position } = this;
      this.pause();
      this.index = index;
      this.seek(position);
      if (playing) this.play();
      else this.active.dispatchEvent(new Event("timeupdate"));
    }
    repeat(loop) { for (const player of this.players) player.loop = loop; }
    close() {
      this.pause();
      for (const player of this.players) player.removeAttribute("src");
    }
  }

  const clock = (position, seconds) => `${position.toFixed(1)} / ${seconds.toFixed(1)} s`;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  function startPlayer() {
    let clip, deck, takes, request;
    let armed = false; // whether the keys of the player mean it rather than the page

    function show(index) {
      deck?.close();
      clip = data.clips[index];
      deck = new Deck(clip.takes.map((take) => take.audio), find("loop").checked, update);
      takes = clip.takes.map((take, place) => takeRow(take, place));
      find("takes").replaceChildren(...takes.map((take) => take.row));
      find("position").max = clip.seconds;
      find("scale").textContent = `${data.lowest_hz} Hz to ${(clip.highest_hz / 1000).toFixed(1)} kHz, ${data.range_db} dB`;
      update();
    }

    function takeRow(take, place) {
      const row = make("li", "take");
      const button = make("button");
      button.type = "button";
      if (place < 9) button.append(make("kbd", "", `${place + 1}`));
      const isReference = take.run === data.reference;
      button.append(make("span", "", isReference ? "Reference" : data.runs[take.run] || take.run));
      button.append(make("span", "soft", isReference ? "original" : `${take.run} · epoch ${take.epoch}`));
      button.addEventListener("click", () => choose(place));
      const picture = make("div", "picture");
      const image = make("img");
      image.alt = `Spectrogram: ${runName(take.run)}`;
      image.src = take.image;
      const head = make("div", "head");
      picture.append(image, ...hertzMarks(), head);
      picture.addEventListener("click", (event) => {
        const box = picture.getBoundingClientRect();
        choose(place);
        deck.seek(((event.clientX - box.left) / box.width) * clip.seconds);
      });
      row.append(button, picture);
      return { row, button, head };
    }

    function hertzMarks() {
      const span = Math.log(clip.highest_hz / data.lowest_hz);
      return [100, 1000, 10000].filter((hertz) => hertz < clip.highest_hz * 0.9).map((hertz) => {
        const mark = make("span", "hertz", hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`);
        mark.style.bottom = `${(Math.log(hertz / data.lowest_hz) / span) * 100}%`;
        mark.setAttribute("aria-hidden", "true");
        return mark;
      });
    }

    function choose(place) {
      if (place >= clip.takes.length) return;
      armed = true;
      deck.choose(place);
      find("player-status").textContent = `${runName(clip.takes[place].run)}, ${deck.playing ? "playing" : "paused"}`;
      update();
    }

    function update() {
      if (!deck) return;
      takes.forEach((take, place) => {
        take.button.setAttribute("aria-pressed", place === deck.index);
        take.row.classList.toggle("chosen", place === deck.index);
      });
      find("play").textContent = deck.playing ? "Pause" : "Play";
      if (deck.active.error) find("player-status").textContent = "This browser cannot play the recording.";
      move();
      if (!calm.matches) follow();
    }

    function follow() {
      cancelAnimationFrame(request);
      if (deck.playing) request = requestAnimationFrame(() => { move(); follow(); });
    }

    function move() {
      const position = deck.position;
      find("position").value = position;
      find("position").setAttribute("aria-valuetext", `${position.toFixed(1)} seconds`);
      find("time").textContent = clock(position, clip.seconds);
      for (const take of takes) take.head.style.left = `${Math.min(100, (position / clip.seconds) * 100)}%`;
    }

    options(find("clip"), data.clips.map((each, place) => [place, `${each.name} (${each.takes.length} recordings)`]));
    on("clip", "change", () => show(Number(find("clip").value)));
    on("loop", "change", () => deck.repeat(find("loop").checked));
    on("play", "click", () => { armed = true; deck.toggle(); });
    on("position", "input", () => { armed = true; deck.seek(Number(find("position").value)); });
    find("player").hidden = false;
    show(0);
    return {
      get clip() { return Number(find("clip").value); },
      get deck() { return deck; },
      get armed() { return armed; },
      key: (key) => { if (/^[1-9]$/.test(key)) choose(Number(key) - 1); },
    };
  }

  // ---- blind test --------------------------------------------------------------------------------------------------

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

  // ---- keys --------------------------------------------------------------------------------------------------------

  function startKeys(player, test) {
    document.addEventListener("keydown", (event) => {
      const { key, target } = event;
      if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
      if (target.matches("select, textarea, input:not([type=range], [type=checkbox])")) return;
      const owner = test.deck ? test : player;
      const inside = target.closest("#player, #abx-trial");
      if (key === " ") {
        const pressable = target.matches("button, a, summary, [type=checkbox]");
        if (pressable || !(inside || test.deck || player.armed)) return;
        owner.deck.toggle();
      } else if (key === "ArrowLeft" || key === "ArrowRight") {
        if (!inside && target !== document.body) return; // tables scroll with these
        owner.deck.seek(owner.deck.position + (key === "ArrowLeft" ? -1 : 1));
      } else if (key.length === 1) {
        owner.key(key);
        return;
      } else return;
      event.preventDefault();
    });
  }

  startTable();
  if (data.clips.length) {
    const player = startPlayer();
    startKeys(player, startTest(player));
  }
})();

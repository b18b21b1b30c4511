// Listening: the recordings of one clip, switched without losing the position. A recording is loaded when it is chosen.

const KEPT = 12; // decoded recordings of a clip
const decibels = (loudness) => (loudness === null ? "no loudness" : `${loudness.toFixed(1).replace("-", "−")} LUFS`);

let shownSigs = null; // signatures that the filters of the table let through; null: all
document.addEventListener("audiotok:shown", (event) => { shownSigs = new Set(event.detail.sigs); });
const isShown = (run) => !shownSigs || run === data.reference || shownSigs.has(run.split(" ")[0]);

function startPlayer() {
  let clip, deck, takes, chosen, drawn;
  let armed = false; // whether the keys of the player mean it rather than the page

  function show(index) {
    deck?.close();
    clip = data.clips[index];
    deck = new Deck(clip.sample_rate, Math.round(clip.seconds * clip.sample_rate), update);
    takes = clip.takes.map((take, place) => takeRow(take, place));
    find("takes").replaceChildren(...takes);
    drawn = null;
    find("position").max = clip.seconds;
    find("scale").textContent = `${data.lowest_hz} Hz to ${(clip.highest_hz / 1000).toFixed(1)} kHz, ${data.range_db} dB`;
    deck.repeat(find("loop").checked);
    filter();
    choose(0);
  }

  function filter() { // the first nine that are shown answer to keys
    clip.takes.forEach((take, place) => { takes[place].hidden = !isShown(take.run); });
    takes.forEach((row) => row.querySelector("kbd")?.remove());
    takes.filter((row) => !row.hidden).slice(0, 9).forEach((row, place) => {
      row.querySelector("button").prepend(make("kbd", "", `${place + 1}`));
    });
  }

  function takeRow(take, place) {
    const row = make("li", "take");
    const button = make("button");
    button.type = "button";
    const isReference = take.run === data.reference;
    button.append(make("span", "", isReference ? "Reference" : data.runs[take.run] || take.run));
    button.append(make("span", "soft", `${isReference ? "original" : `${take.run} · epoch ${take.epoch}`} · ${decibels(take.loudness)}`));
    button.addEventListener("click", () => { armed = true; choose(place); });
    const picture = make("div", "picture");
    const image = make("img");
    image.alt = `Spectrogram: ${runName(take.run)}`;
    image.loading = "lazy";
    image.src = pictureOf(take.image);
    picture.append(image, ...hertzMarks(), make("div", "head"));
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      armed = true;
      choose(place);
      deck.seek(((event.clientX - box.left) / box.width) * clip.seconds);
    });
    row.append(button, picture);
    return row;
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

  async function choose(place) {
    if (place >= clip.takes.length) return;
    const own = deck;
    const take = clip.takes[place];
    chosen = place;
    update();
    if (!own.takes.has(place)) {
      const buffer = await loaded(take.audio, own.rate).catch(() => null);
      if (!buffer) find("player-status").textContent = `${runName(take.run)} cannot be played.`;
      if (!buffer || deck !== own) return; // or another clip since
      if (!own.takes.has(place)) own.put(place, buffer);
    }
    const first = own.takes.keys().next().value;
    if (own.takes.size > KEPT && first !== own.index) own.drop(first);
    if (chosen !== place) return; // or another recording
    own.choose(place);
    find("player-status").textContent = `${runName(take.run)}, ${own.playing ? "playing" : "paused"}`;
  }

  function update() { // also for each picture of the screen, so it touches what has changed
    const state = `${deck.playing} ${chosen}`;
    if (drawn !== state) {
      drawn = state;
      takes.forEach((row, place) => {
        row.querySelector("button").setAttribute("aria-pressed", place === chosen);
        row.classList.toggle("chosen", place === chosen);
      });
      find("play").textContent = deck.playing ? "Pause" : "Play";
    }
    const { position } = deck;
    find("position").value = position;
    find("position").setAttribute("aria-valuetext", `${position.toFixed(1)} seconds`);
    find("time").textContent = clock(position, clip.seconds);
    find("takes").style.setProperty("--at", `${Math.min(100, (position / clip.seconds) * 100)}%`);
  }

  options(find("clip"), data.clips.map((each, place) => [place, `${each.name} (${each.takes.length} recordings)`]));
  document.addEventListener("audiotok:shown", filter);
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
    key(key) {
      const row = takes.find((each) => !each.hidden && each.querySelector("kbd")?.textContent === key);
      if (row) { armed = true; choose(takes.indexOf(row)); }
    },
  };
}

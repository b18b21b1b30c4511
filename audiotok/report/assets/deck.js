// Several recordings at one position, one of which can be heard. All run on one clock of Web Audio, muted but for one:
// switching fades between two samples of the same position.

const LEAD_S = 0.03; // from a command to the sound: the clock runs on while sources are made
const FADE_S = 0.002; // time constant of a switch, against clicks
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const clocks = new Map(); // an AudioContext per sample rate
let sounding = null; // the only deck that plays

function clockOf(rate) {
  if (!clocks.has(rate)) clocks.set(rate, new AudioContext({ sampleRate: rate }));
  return clocks.get(rate);
}

class Deck {
  // `changed` is called when something has changed, and again and again while it plays
  constructor(rate, frames, changed) {
    Object.assign(this, { rate, frames, changed, takes: new Map(), index: 0, playing: false, at: 0 });
    Object.assign(this, { loop: true, from: 0, to: frames });
  }

  // Makes a recording of `frames` frames heard when its turn comes, at once if it plays.
  put(index, buffer, gain = 1) {
    const take = { buffer: resized(buffer, this.frames), gain };
    this.takes.set(index, take);
    if (!this.playing) return;
    const when = this.soon;
    this.begin(index, take, when, this.frameAt(when));
  }
  drop(index) {
    this.takes.get(index)?.source?.stop();
    this.takes.delete(index);
  }

  get soon() { return Math.ceil((this.clock.currentTime + LEAD_S) * this.rate); }
  get end() { return this.loop ? this.to : this.frames; }
  get position() { return this.frameAt(this.playing ? Math.round(this.clock.currentTime * this.rate) : 0) / this.rate; }
  frameAt(when) {
    if (!this.playing) return this.at;
    const frame = this.at + Math.max(0, when - this.began);
    if (frame < this.end) return frame;
    return this.loop ? this.from + ((frame - this.from) % (this.to - this.from)) : this.frames;
  }

  begin(index, take, when, frame) {
    const whole = this.from === 0 && this.to === this.frames;
    take.fader = new GainNode(this.clock, { gain: index === this.index ? take.gain : 0 });
    take.source = new AudioBufferSourceNode(this.clock, {
      buffer: take.buffer, loop: this.loop,
      loopStart: whole ? 0 : this.from / this.rate, loopEnd: whole ? 0 : this.to / this.rate,
    });
    take.source.connect(take.fader).connect(this.clock.destination);
    take.source.onended = () => { if (this.takes.get(this.index) === take) { this.pause(); this.seek(0); } };
    take.source.start(when / this.rate, frame / this.rate);
  }

  play() {
    if (this.playing) return;
    if (sounding !== this) sounding?.pause();
    sounding = this;
    this.clock = clockOf(this.rate);
    this.clock.resume().catch(() => {}); // refused before a gesture of the reader
    if (this.at >= this.end) this.at = this.loop ? this.from : 0;
    this.began = this.soon;
    this.playing = true;
    for (const [index, take] of this.takes) this.begin(index, take, this.began, this.at);
    this.follow();
  }
  pause() {
    if (!this.playing) return;
    this.at = Math.round(this.position * this.rate);
    this.playing = false;
    for (const take of this.takes.values()) {
      take.source.onended = null;
      take.source.stop();
      take.fader.disconnect();
    }
    this.changed();
  }
  toggle() { if (this.playing) this.pause(); else this.play(); }
  again(change) { // as it plays on
    const { playing } = this;
    this.pause();
    change();
    if (playing) this.play();
    else this.changed();
  }
  seek(seconds) {
    this.again(() => { this.at = Math.max(0, Math.min(Math.round(seconds * this.rate), this.frames)); });
  }
  repeat(loop, from = 0, to = this.frames) { this.again(() => Object.assign(this, { loop, from, to })); }

  choose(index) {
    const before = this.takes.get(this.index);
    const after = this.takes.get(index);
    if (index !== this.index && this.playing) {
      before?.fader.gain.setTargetAtTime(0, this.clock.currentTime, FADE_S);
      after?.fader.gain.setTargetAtTime(after.gain, this.clock.currentTime, FADE_S);
    }
    this.index = index;
    this.changed();
  }

  follow() {
    this.changed();
    clearTimeout(this.timer);
    cancelAnimationFrame(this.request);
    if (!this.playing) return;
    if (calm.matches) this.timer = setTimeout(() => this.follow(), 250);
    else this.request = requestAnimationFrame(() => this.follow());
  }
  close() {
    this.changed = () => {};
    this.pause();
    this.takes.clear();
  }
}

const clock = (position, seconds) => `${position.toFixed(1)} / ${seconds.toFixed(1)} s`;

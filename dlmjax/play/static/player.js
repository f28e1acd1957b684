// The slider of the steps. After the steps of the last sample it has one more position where a canvas is edited.

const byId = (id) => document.getElementById(id);
const INTERVAL_MS = [40, 400];

export class Player {
  constructor(show) {
    this.showState = show;
    this.states = 0;
    this.edited = false;
    this.following = true;
    this.timer = null;
    this.slider = byId("slider");
    this.slider.addEventListener("input", () => {
      this.stop();
      this.moved();
    });
    byId("before").addEventListener("click", () => this.move(-1));
    byId("after").addEventListener("click", () => this.move(1));
    byId("play").addEventListener("click", () => this.play());
  }

  get index() {
    return Number(this.slider.value);
  }

  get last() {
    return Math.max(0, this.states + (this.edited ? 1 : 0) - 1);
  }

  get atEdited() {
    return this.edited && this.index === this.last;
  }

  // follow: "last" or a number is the position to go to; without it the position stays, or stays the last one.
  setRange(states, edited, follow) {
    [this.states, this.edited] = [states, edited];
    this.slider.max = this.last;
    if (follow !== undefined) this.following = follow === "last" || follow === this.last;
    if (this.following) this.slider.value = this.last;
    else if (follow !== undefined) this.slider.value = follow;
    byId("play").disabled = states < 2;
    this.label();
  }

  move(steps) {
    this.stop();
    this.slider.value = this.index + steps;
    this.moved();
  }

  moved() {
    this.following = this.index === this.last;
    this.label();
    this.showState();
  }

  label() {
    const text = this.atEdited ? "canvas" : `${this.index} / ${Math.max(0, this.states - 1)}`;
    byId("where").textContent = text;
    this.slider.setAttribute("aria-valuetext", this.atEdited ? "canvas" : `step ${this.index}`);
    byId("before").disabled = this.index === 0;
    byId("after").disabled = this.index === this.last;
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    byId("play").textContent = "Play";
  }

  play() {
    if (this.timer !== null) {
      this.stop();
      return;
    }
    if (this.index >= this.states - 1) this.slider.value = 0;
    this.moved();
    byId("play").textContent = "Pause";
    const [shortest, longest] = INTERVAL_MS;
    this.timer = setInterval(() => {
      this.slider.value = this.index + 1;
      this.moved();
      if (this.index >= this.states - 1) this.stop();
    }, Math.max(shortest, Math.min(longest, 8000 / this.states)));
  }
}

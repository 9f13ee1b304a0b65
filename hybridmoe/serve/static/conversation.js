// Conversation state of this tab: turns, an attempt under way, a failed message.

const KEY = "hybridmoe.conversation";
const MAX_CHARS = 1_000_000; // kept over a reload

/** Turns are {role, content, reasoning_content?, note?}; a note is the reason of an early end. */
export class Conversation {
  turns = [];
  failed = null; // {text, at, problem}: not part of the conversation; text null: only its response
  isCut = false; // the first turns were too long to keep
  attempt = null; // {text, at, replaced}: the response under way

  /** Add a message in place of all turns from `at` on. Returns the turn for the response. */
  ask(text, at = this.turns.length) {
    return this.begin(text, at, [{ role: "user", content: text }]);
  }

  /** Start another response in place of turn `at`. */
  again(at) {
    return this.begin(null, at, []);
  }

  begin(text, at, asked) {
    const reply = { role: "assistant", content: "" };
    const replaced = this.turns.splice(at, this.turns.length, ...asked, reply);
    this.attempt = { text, at, replaced };
    this.failed = null;
    return reply;
  }

  /** End the response under way, with a problem or without. */
  end(problem = null) {
    const { text, at, replaced } = this.attempt;
    const reply = this.turns.at(-1);
    this.attempt = null;
    if (problem === null) return;
    if (reply.content || reply.reasoning_content) {
      reply.note = problem;
      return;
    }
    this.turns.splice(at, this.turns.length, ...replaced);
    this.failed = { text, at, problem };
  }

  /** The turns as the endpoint takes them, without the response to come. */
  get sent() {
    return this.turns.slice(0, -1).map(({ note, ...turn }) => turn);
  }

  clear() {
    this.turns = [];
    this.failed = this.attempt = null;
    this.isCut = false;
  }

  /** Save for a reload; of a long conversation, its last turns. */
  save() {
    let { turns, failed, isCut, attempt } = this;
    let state = JSON.stringify({ turns, failed, isCut, attempt });
    while (state.length > MAX_CHARS && turns.length > 2) {
      const dropped = 2 * Math.ceil(turns.length / 8);
      turns = turns.slice(dropped);
      failed = moved(failed, dropped);
      attempt = moved(attempt, dropped);
      isCut = true;
      state = JSON.stringify({ turns, failed, isCut, attempt });
    }
    try {
      sessionStorage.setItem(KEY, state.length > MAX_CHARS ? "" : state);
    } catch {
      sessionStorage.removeItem(KEY); // storage is full: none is better than an old one
    }
  }

  /** Load what was saved. A response that was under way has ended. */
  load() {
    try {
      const { turns, failed, isCut, attempt } = JSON.parse(sessionStorage.getItem(KEY));
      if (!turns.every(isTurn)) throw new TypeError("not this page's");
      Object.assign(this, { turns, failed, isCut, attempt });
      if (attempt) this.end("the page was left");
    } catch {
      this.clear(); // nothing saved, or another form
    }
  }
}

function isTurn({ role, content }) {
  return ["user", "assistant"].includes(role) && typeof content === "string";
}

/** Shift a state by the dropped turns; null if its own turn was dropped. */
function moved(state, dropped) {
  return state && state.at >= dropped ? { ...state, at: state.at - dropped } : null;
}

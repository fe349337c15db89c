// A list of what happened that can be waited on: no test has to sleep until something is probably there.

export class Journal {
  #entries = [];
  #waiting = new Set();

  /** Appends one entry and wakes those who waited for it. */
  push(entry) {
    this.#entries.push(entry);
    for (const wake of this.#waiting) wake();
  }

  get entries() {
    return this.#entries;
  }

  /** The first `count` matching entries, as soon as they exist; rejects with what did happen instead. */
  wait(matches, count, timeoutMs, what) {
    return new Promise((resolve, reject) => {
      const done = () => {
        clearTimeout(timer);
        this.#waiting.delete(look);
      };
      const look = () => {
        const found = this.#entries.filter(matches);
        if (found.length < count) return;
        done();
        resolve(found.slice(0, count));
      };
      const timer = setTimeout(() => {
        done();
        const seen = this.#entries.slice(-20).map(e => `${e.event}(${e.jobId ?? ''})`).join(' ') || 'nothing';
        reject(new Error(`waited ${timeoutMs} ms for ${count} of ${what}; seen: ${seen}`));
      }, timeoutMs);
      this.#waiting.add(look);
      look();
    });
  }
}

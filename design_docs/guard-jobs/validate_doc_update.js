// Who may write what into a database of jobs: the state machine of jobs, and the roles. Administrators are bound too.
function (newDoc, oldDoc, userCtx) {
  function forbid(reason) {
    throw({forbidden: "couchjobs: " + reason});
  }
  function has(role) {
    return userCtx.roles.indexOf(role) >= 0;
  }
  function produces() { // of which tenant the role is, the security object of the database has looked at
    return userCtx.roles.some(function (role) {
      return role === "couchjobs-producer" || role.indexOf("couchjobs-producer:") === 0;
    });
  }
  function same(one, other) {
    if (one === other) return true;
    if (!one || !other || typeof one !== "object" || typeof other !== "object") return false;
    if (Array.isArray(one) !== Array.isArray(other)) return false;
    var names = Object.keys(one);
    if (names.length !== Object.keys(other).length) return false;
    return names.every(function (name) { return same(one[name], other[name]); });
  }
  function without(doc, names) {
    var rest = {};
    Object.keys(doc).forEach(function (name) {
      if (names.indexOf(name) < 0) rest[name] = doc[name];
    });
    return rest;
  }
  function claimOf(doc) {
    return doc.claim && typeof doc.claim === "object" ? doc.claim : {};
  }

  if (newDoc._id.indexOf("_design/") === 0) return; // only administrators of the database may, CouchDB sees to it
  var old = oldDoc && !oldDoc._deleted ? oldDoc : null;
  var works = has("_admin") || has("couchjobs-worker");
  if (!works && !produces()) {
    forbid("writing needs the role couchjobs-producer or couchjobs-worker");
  }
  if (newDoc._deleted) {
    if (!works) forbid("a producer deletes no jobs: set cancel_requested");
    if (old && old.state === "running" && newDoc.conflict_settled !== true) {
      forbid("a running job is not deleted: set cancel_requested"); // but a branch of it that loses is
    }
    return;
  }
  if (typeof newDoc.worker !== "string" || !newDoc.worker) forbid("worker must be text");
  if (!("message" in newDoc)) forbid("message is missing: write null for a worker that takes none");
  if (["queued", "running", "done", "errored"].indexOf(newDoc.state) < 0) {
    forbid("state must be queued, running, done or errored");
  }
  if (old && newDoc.worker !== old.worker && typeof old.worker === "string" && old.worker) {
    forbid("the worker of a job never changes");
  }

  if (!works) {
    if (!old) {
      if (newDoc._revisions && newDoc._revisions.start > 1) { // by replication, beside whatever has that id
        forbid("a producer creates a job at its first revision");
      }
      if (newDoc.state !== "queued") forbid("a producer creates queued jobs");
      ["claim", "started_at", "finished_at", "error", "errors", "result", "progress", "exec_count", "trigger_id",
        "event", "debounced", "admin_proof", "triggered_by", "payload_ids", "reduced", "ending", "cancelled",
        "seconds", "tick", "previous_tick", "payload_headers", "conflict_settled"].forEach(function (name) {
        if (newDoc[name]) forbid("a producer does not set " + name);
      });
    } else {
      var ignored = ["_rev", "_revisions", "cancel_requested"];
      if (newDoc.cancel_requested !== true || !same(without(newDoc, ignored), without(old, ignored))) {
        forbid("a producer changes nothing of a job but sets cancel_requested to true");
      }
    }
    return;
  }

  if (!old) { // new, or arrived by replication
    if (newDoc.state === "running") forbid("no job begins as a running one");
    return;
  }
  if (newDoc.state === "errored" && ["queued", "running", "done", "errored"].indexOf(old.state) < 0) return; // no job
  var move = old.state + " to " + newDoc.state;
  switch (move) {
    case "queued to running":
      if (typeof claimOf(newDoc).id !== "string" || typeof claimOf(newDoc).daemon !== "string") {
        forbid("a claim says who: claim.id and claim.daemon");
      }
      if (newDoc.exec_count !== (old.exec_count || 0) + 1) forbid("a claim counts the try: exec_count");
      return;
    case "running to running":
    case "running to done":
    case "running to errored":
      if (newDoc.claim && !same(newDoc.claim, old.claim)) forbid("the job is claimed by another");
      return;
    case "done to queued":
    case "errored to queued":
      if (newDoc.exec_count || newDoc.claim) forbid("a job that is done again begins anew: no exec_count, no claim");
      return;
    case "queued to queued":
    case "queued to errored":
    case "running to queued":
    case "done to done":
    case "errored to errored":
      return;
    case "queued to done":
      if (newDoc.worker === "client") return;
  }
  forbid("no job moves from " + move);
}

function (doc) {
  if (!doc.trigger_id || !doc.state || doc.trigger_id.length > 20000 || doc._id.length > 20000) return;
  var at = doc.queued_at || (doc.state === "queued" ? {} : "");
  var started = typeof doc.started_at === "string" && doc.started_at.length <= 64 ? doc.started_at : null;
  var state = typeof doc.state === "string" && doc.state.length <= 20 ? doc.state : "errored";
  emit([doc.trigger_id, typeof at === "string" && at.length > 64 ? "" : at], [state, doc.manual_execution === true, started]);
}

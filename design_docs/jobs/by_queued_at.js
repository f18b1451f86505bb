function (doc) {
  if (!doc.worker || !doc.state || doc._id.length > 20000) return;
  var at = doc.queued_at || (doc.state === "queued" ? {} : "");
  emit(typeof at === "string" && at.length > 64 ? "" : at, null);
}

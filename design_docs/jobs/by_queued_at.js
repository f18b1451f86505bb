function (doc) {
  if (doc.worker && doc.state) emit(doc.queued_at || (doc.state === "queued" ? {} : ""), null);
}

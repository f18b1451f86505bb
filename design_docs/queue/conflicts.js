function (doc) {
  if (doc._conflicts && doc.worker && doc._id.length <= 20000) emit(doc._id, doc._conflicts.slice(0, 100));
}

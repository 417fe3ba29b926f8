// Holds the Android sample to the committed vectors: `java ... VectorsKt tests/vectors SCRATCH` prints what it held, or fails.
package pocketrank.sample

import java.io.File

private val WIRE = Count.entries.associateBy { it.name.lowercase() }
private val FORMS = Form.entries.associateBy { it.wire }
private val STAGES = Stage.entries.associateBy { it.wire }

private fun same(what: String, expected: Any?, got: Any?) {
    if (expected != got) throw AssertionError("$what\n  expected $expected\n  got      $got")
}

private fun json(file: File) = Json.decode(file.readBytes())

private fun hex(text: String) = ByteArray(text.length / 2) { text.substring(it * 2, it * 2 + 2).toInt(16).toByte() }

/** A float as the vectors tell it; null is NaN. */
private fun Node.float() = optional { double().toFloat() } ?: Float.NaN

private fun Node.number(): Double? = when (value) {
    null -> null
    "inf" -> Double.POSITIVE_INFINITY
    else -> double()
}

private fun Node.shape() = this["shape"].list().map { it.int() }

private fun Node.tensor(ints: Boolean): Tensor = this["values"].list().let { values ->
    if (ints) Tensor.Ints(shape().toIntArray(), IntArray(values.size) { values[it].int() })
    else Tensor.Floats(shape().toIntArray(), FloatArray(values.size) { values[it].float() })
}

/** -0.0 is 0.0: no model tells them apart. */
private fun plain(tensor: Tensor?): Any? = when (tensor) {
    null -> null
    is Tensor.Floats -> tensor.shape.toList() to tensor.values.map { if (it == 0f) 0f else it }
    is Tensor.Ints -> tensor.shape.toList() to tensor.values.toList()
}

private fun event(node: Node): FeedbackEvent = FeedbackEvent(
    eventId = node["event_id"].text(),
    userId = node["user_id"].long(),
    sessionId = node["session_id"].text(),
    itemId = node["item_id"].long(),
    position = node["position"].long(),
    impressionMs = node["impression_ms"].long(),
    watchMs = node["watch_ms"].long(),
    pageId = node["page_id"].optional { text() },
    experiment = node["experiment"].optional { text() },
    ended = Ended.entries[node["ended"].int()],
    click = node["click"].bool(),
    like = node["like"].bool(),
    follow = node["follow"].bool(),
    comment = node["comment"].bool(),
    share = node["share"].bool(),
    profileEnter = node["profile_enter"].bool(),
    dislike = node["dislike"].bool(),
    volume = node["volume"].number(),
    volumeChange = node["volume_change"].number(),
    muted = node["muted"].optional { bool() },
    orientation = node["orientation"].optional { Orientation.entries[int()] },
    playbackRate = node["playback_rate"].number(),
    pauses = node["pauses"].optional { long() },
    seeks = node["seeks"].optional { long() },
    scrollSpeed = node["scroll_speed"].number(),
    network = node["network"].optional { Network.entries[int()] },
    bufferingMs = node["buffering_ms"].optional { long() },
    batterySaver = node["battery_saver"].optional { bool() },
    backgrounded = node["backgrounded"].optional { bool() },
)

/** Holds what goes into the model to the runs of a recorded step, and answers what was recorded. */
private class Recorded(private val form: Form, session: Node, private val runs: ArrayDeque<Node>) : Model {
    override val sizes = session["stages"][form.wire].map().entries.associate { (stage, sizes) ->
        STAGES.getValue(stage as String) to Node(sizes).optional { list().map { it.int() } }
    }
    override val fixedEvents = session["events_static"].bool()
    override val eventStateWidth = EVENT_STATE_WIDTH

    override fun run(stage: Stage, size: Int, inputs: Map<String, Tensor>): Map<String, Tensor> {
        val run = runs.removeFirstOrNull() ?: throw AssertionError("a run of ${stage.wire} that the SDK did not make")
        same("${run.path} stage", run["form"].text() to run["stage"].text(), form.wire to stage.wire)
        for (name in run["inputs"].map().keys) {
            val ints = name.toString().endsWith("_category")
            same("${run.path} $name", plain(run["inputs"][name as String].tensor(ints)), plain(inputs[name]))
        }
        val vectors = setOf("candidate_vector", "user_vector").intersect(inputs.keys)
        if (form != Form.SPLIT) same("${run.path} vectors in the other form", emptySet<String>(), vectors)
        if (run["outputs"].value == null) throw ModelException("as recorded")
        return run["outputs"].map().keys.associate { (it as String) to run["outputs"][it].tensor(it == "order") }
    }

    private companion object {
        const val EVENT_STATE_WIDTH = 3
    }
}

private fun play(folder: File, file: File) {
    val told = json(file)
    val runs = ArrayDeque<Node>()
    val spec = FeatureSpec.read(json(File(folder, told["spec"].text())))
    val models = told["stages"].map().keys.associate { FORMS.getValue(it as String).let { form -> form to Recorded(form, told, runs) } }
    var nowMs = 0L
    val outbox = Outbox(null)
    val paging = Paging(told["paging"]["consume"].int(), told["paging"]["size"].int())
    val session = FeedSession(
        Ranker(spec, told["split_version"].text(), models), told["user_id"].long(), told["session_id"].text(), outbox, paging,
        steady = { nowMs },
    ) { nowMs }
    for (step in told["steps"].list()) {
        val what = "${file.name} ${step.path} ${step["do"].text()}"
        nowMs = step["now_ms"].long()
        step["runs"].optional { list() }?.let(runs::addAll)
        val answer = step["answer"]
        when (step["do"].text()) {
            "take" -> {
                val page = Page.decode(File(folder, "pages/${step["page"].text()}.msgpack").readBytes())
                same(what, answer.bool(), session.take(page))
                same("$what form", step["form"].value, session.form?.wire)
            }
            "next" -> same(what, answer.value, session.next())
            "remaining" -> same(what, answer.list().map { it.long() }, session.remaining())
            "feedback" -> same(what, answer.bool(), session.feedback(event(step["event"])))
            "wants_page" -> session.wantsPage().let {
                same(what, answer["reason"].text() to answer["request"].bool(), it.reason to it.request)
                same(what, answer["size"].int(), it.size)
            }
            "request" -> {
                val request = session.request(step["size"].int())
                same(what, told(MessagePack.decode(hex(answer.text())).value), told(MessagePack.decode(request.bytes).value))
                outbox.acknowledged(request.eventIds)
            }
        }
        same("$what runs left", 0, runs.size)
    }
    for ((name, expected) in told["counters"].map()) {
        same("${file.name} $name", (expected as Long).toInt(), session.counts[WIRE.getValue(name as String)] ?: 0)
    }
}

/** A writer may leave out what is null. */
private fun told(value: Any?): Any? = when (value) {
    is Map<*, *> -> value.filterValues { it != null }.mapValues { told(it.value) }
    is List<*> -> value.map(::told)
    else -> value
}

private fun encodings(folder: File) {
    val builder = FeatureBuilder(FeatureSpec.read(json(File(folder, "spec.json"))))
    val told = json(File(folder, "encodings.json"))
    for (name in told["pages"].map().keys) {
        val expected = told["pages"][name as String]
        val page = Page.decode(File(folder, "pages/$name.msgpack").readBytes())
        val refused = expected["refused"].optional { text() }
        if (refused != null) {
            same(name, refused, try { builder.page(page).toString() } catch (e: ContractException) { e.path })
            continue
        }
        val got = builder.page(page)
        same("$name ids", expected["item_id"].list().map { it.long() }, got.itemIds.toList())
        same("$name floats", expected["floats"].tensor(false).let(::plain), plain(unbatched(rows(got.floats.toList(), builder.spec.candidateFloats.size))))
        same("$name categories", expected["categories"].tensor(true).let(::plain), plain(unbatched(codes(got.categories.toList(), builder.spec.candidateCategories.size))))
        same("$name vector", expected["vector"].optional { plain(tensor(false)) }, got.vectors?.let { plain(unbatched(rows(it.toList(), builder.spec.vectorWidth))) })
        same("$name user", expected["user_vector"].optional { plain(tensor(false)) }, got.userVector?.let { plain(unbatched(rows(listOf(it), it.size))) })
        same("$name readable", expected["features_bad"].bool(), !got.readable)
        same("$name counts", expected["duplicates"].int() to expected["missing_columns"].int(), got.duplicates to got.missingColumns)
    }
    for (name in told["events"].map().keys) {
        val expected = told["events"][name as String]
        val event = event(expected["event"])
        same("$name feedback", expected["feedback"]["values"].list().map { it.float() }, builder.feedback(event).toList())
        same("$name bytes", expected["msgpack"].text(), event.encode().joinToString("") { "%02x".format(it) })
    }
    for (moment in told["moments"].list()) {
        val got = builder.context(moment["position"].long(), moment["now_ms"].long())
        same(moment.path, moment["context"]["values"].list().map { it.float() }, got.toList())
    }
}

private fun unbatched(tensor: Tensor): Tensor = when (tensor) {
    is Tensor.Floats -> Tensor.Floats(tensor.shape.copyOfRange(1, 3), tensor.values)
    is Tensor.Ints -> Tensor.Ints(tensor.shape.copyOfRange(1, 3), tensor.values)
}

private fun wire(folder: File) {
    for (name in listOf("page", "page_without_vectors", "page_of_nothing")) {
        Page.decode(File(folder, "valid/$name.msgpack").readBytes())
    }
    for (file in File(folder, "bad").listFiles { it -> it.name.startsWith("page_") && it.extension == "msgpack" }!!) {
        same(file.name, "refused", try { Page.decode(file.readBytes()); "taken" } catch (e: ContractException) { "refused" })
    }
    for (block in json(File(folder, "blocks.json")).list().filter { it["dtype"].text() == "f2" }) {
        val expected = block["values"].list().map { if (it.value is String) it.text().replace("inf", "Infinity").toFloat() else it.float() }
        val bytes = hex(block["hex"].text())
        same(block.path, expected, List(bytes.size / 2) { halfToFloat((bytes[it * 2].toInt() and 0xff) or (bytes[it * 2 + 1].toInt() and 0xff shl 8)) })
    }
    same("event", File(folder, "valid/event_full.msgpack").readBytes().toList(), MessagePack.encode(MessagePack.decode(File(folder, "valid/event_full.msgpack").readBytes()).value).toList())
    FeatureSpec.read(json(File(folder, "valid/spec.json")))
}

/** A process that ends at any byte loses the event that it was writing, and no other. */
private fun outbox(scratch: File, folder: File) {
    val told = json(File(folder, "features/encodings.json"))["events"]
    val events = told.map().keys.map { event(told[it as String]["event"]) }
    val whole = File(scratch, "outbox").also { it.delete() }
    Outbox(whole).run { events.forEach(::add) }
    val bytes = whole.readBytes()
    val ends = events.runningFold(0) { end, event -> end + 4 + event.encode().size }.drop(1)
    for (cut in (0..bytes.size step 37) + ends + ends.map { it - 1 }) {
        val file = File(scratch, "cut").also { it.writeBytes(bytes.copyOf(cut)) }
        same("outbox cut at $cut", events.take(ends.count { it <= cut }).map { it.eventId }, Outbox(file).waiting().keys.toList())
    }
    val again = Outbox(whole)
    same("a known id", false, again.add(events[0]))
    again.acknowledged(listOf(events[1].eventId))
    same("acknowledged", events.map { it.eventId } - events[1].eventId, Outbox(whole).waiting().keys.toList())
    val small = Outbox(null, waitingMax = 2).also { box -> events.forEach(box::add) }
    same("the oldest go", events.takeLast(2).map { it.eventId }, small.waiting().keys.toList())
    same("batch", 2, MessagePack.decode(small.batch(small.waiting()))["events"].list().size)
    same("part of them", events.takeLast(2).take(1).map { it.eventId }, small.waiting(1).keys.toList())
    same("none of them", emptyList<String>(), small.waiting(0).keys.toList())
    val large = Outbox(null).also { box -> repeat(30) { box.add(events[0].copy(eventId = "$it", pageId = "p".repeat(20_000))) } }
    same("bytes of a call", 12, large.waiting().size)
}

/** A receipt settles a batch of three when it speaks of each event once. */
private fun receipts() {
    fun settles(accepted: Int, duplicates: Int, vararg refused: Int) = Receipt.decode(MessagePack.encode(mapOf(
        "accepted" to accepted, "duplicates" to duplicates, "refused" to refused.map { mapOf("index" to it, "reason" to "no") },
    ))).settles(3)
    same("receipts", listOf(true, true, true), listOf(settles(3, 0), settles(1, 1, 2), settles(0, 0, 2, 0, 1)))
    val others = listOf(settles(0, 0), settles(2, 0), settles(4, -2, 1), settles(-1, 4), settles(2, 0, 3), settles(2, 0, -1), settles(1, 0, 1, 1))
    same("receipts for other batches", others.map { false }, others)
}

/** Each folder of `bundles/` is named for what must become of it. */
private fun bundles(folder: File) {
    for (one in folder.listFiles()!!) {
        val got = try { Bundle.open(one, NOW_MS).run { "good ${model(Form.SPLIT)?.isFile} $splitVersion" } } catch (e: BundleException) { "bad" }
        same(one.name, if (one.name.startsWith("good")) "good true split-1" else "bad", got)
    }
}

private const val NOW_MS = 1_700_000_000_000L

fun main(args: Array<String>) {
    val (vectors, scratch) = args.map(::File)
    val sessions = File(vectors, "features/sessions").listFiles()!!.sorted()
    wire(vectors)
    encodings(File(vectors, "features"))
    sessions.forEach { play(File(vectors, "features"), it) }
    outbox(scratch, vectors)
    receipts()
    bundles(File(scratch, "bundles"))
    println("held ${sessions.joinToString { it.nameWithoutExtension }}")
}

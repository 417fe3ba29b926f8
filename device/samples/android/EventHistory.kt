// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

/** The last `events_max` impressions, oldest first, and the state that the model's stage `event` computed for each. */
class EventHistory(private val spec: FeatureSpec) {
    private class Event(
        val impressionMs: Long,
        val position: Long,
        val floats: FloatArray,
        val categories: IntArray,
        val vector: FloatArray?,
        val feedback: FloatArray,
    ) {
        var state: FloatArray? = null
    }

    private val events = ArrayList<Event>()
    private var fresh = 0 // newest events whose state is not computed yet
    private var stateOf: Form? = null

    val count get() = events.size

    /**
     * Remember that [row] of [page] was shown. A late event is inserted before those of later impressions. False for
     * one that is older than all of a full history, which is dropped.
     */
    fun append(impressionMs: Long, position: Long, feedback: FloatArray, page: PageFeatures, row: Int): Boolean {
        val shownMs = impressionMs.coerceIn(-FAR_MS, FAR_MS)
        val at = events.indexOfLast { it.impressionMs <= shownMs } + 1
        if (at == 0 && events.size == spec.eventsMax) return false
        // The states after it are computed again, because events of one run of the stage share a tensor.
        fresh = minOf(maxOf(fresh, events.size - at) + 1, spec.eventsMax)
        val far = position.coerceIn(-FAR_POSITION, FAR_POSITION)
        events.add(at, Event(shownMs, far, page.floats[row], page.categories[row], page.vectors?.get(row), feedback))
        if (events.size > spec.eventsMax) events.removeAt(0)
        return true
    }

    /** The model's inputs about the events themselves: [length] rows that end [before] rows before the newest. */
    fun inputs(length: Int, before: Int = 0): Map<String, Tensor> {
        val window = List(length) { events.getOrNull(events.size - before - length + it) } // null is padding, at the front
        return mapOf(
            "event_float" to rows(window.map { it?.floats }, spec.candidateFloats.size),
            "event_category" to codes(window.map { it?.categories }, spec.candidateCategories.size),
            "event_vector" to rows(window.map { it?.vector }, spec.vectorWidth),
            "event_feedback" to rows(window.map { it?.feedback }, spec.feedbackFloats.size),
        )
    }

    /** The inputs that change with time: seconds and positions since each impression, none of them negative. */
    fun moment(length: Int, nowMs: Long, position: Long): Map<String, Tensor> {
        val padding = length - events.size
        val gap = FloatArray(length * 2)
        val mask = FloatArray(length)
        events.forEachIndexed { i, event ->
            val since = (nowMs - event.impressionMs).coerceIn(0, GAP_SECONDS_MAX * 1000)
            gap[(padding + i) * 2] = (since.toDouble() * 1e-3).toFloat()
            gap[(padding + i) * 2 + 1] = (position - event.position).coerceIn(0, GAP_POSITIONS_MAX).toFloat()
            mask[padding + i] = 1f
        }
        return mapOf(
            "event_gap" to Tensor.Floats(intArrayOf(1, length, 2), gap),
            "event_mask" to Tensor.Floats(intArrayOf(1, length), mask),
        )
    }

    /**
     * Compute the missing states of this [form] with [stage]; usually that of one event, because states are kept. [lengths] are
     * the counts that the stage was compiled for, ascending; null is any count.
     */
    fun encode(form: Form, lengths: List<Int>?, stage: (Int, Map<String, Tensor>) -> Tensor.Floats) {
        if (form != stateOf) {
            events.forEach { it.state = null }
            stateOf = form
            fresh = events.size
        }
        var before = 0
        while (fresh > before) {
            val left = fresh - before
            val length = fitting(lengths, left)
            val states = stage(length, inputs(length, before))
            val width = states.shape[2]
            val done = minOf(left, length)
            for (i in length - done until length) {
                events[events.size - before - length + i].state = states.values.copyOfRange(i * width, (i + 1) * width)
            }
            before += done
        }
        fresh = 0
    }

    /** `event_state` of the last events, as [encode] computed it. */
    fun states(length: Int, width: Int): Tensor.Floats =
        rows(List(length) { events.getOrNull(events.size - length + it)?.state }, width)

    private companion object {
        const val GAP_SECONDS_MAX = 604_800L // a week
        const val GAP_POSITIONS_MAX = 10_000L
        const val FAR_MS = 1L shl 53
        const val FAR_POSITION = 1L shl 40
    }
}

/** Rows [1, n, width] as one array; zeros where a row is null. */
internal fun rows(rows: List<FloatArray?>, width: Int): Tensor.Floats {
    val values = FloatArray(rows.size * width)
    rows.forEachIndexed { i, row -> row?.copyInto(values, i * width) }
    return Tensor.Floats(intArrayOf(1, rows.size, width), values)
}

internal fun codes(rows: List<IntArray?>, width: Int): Tensor.Ints {
    val values = IntArray(rows.size * width)
    rows.forEachIndexed { i, row -> row?.copyInto(values, i * width) }
    return Tensor.Ints(intArrayOf(1, rows.size, width), values)
}

/** The smallest size that holds [count], else the largest; without sizes, [count] itself. */
internal fun fitting(sizes: List<Int>?, count: Int) = if (sizes == null) count else sizes.firstOrNull { it >= count } ?: sizes.last()

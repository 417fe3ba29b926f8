// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

/** With the cloud's vectors, or without. */
enum class Form(val wire: String) { SPLIT("split"), SELF_CONTAINED("self_contained") }

/** A graph of a model: the whole model, or a part that runs once, when its inputs are known. */
enum class Stage(val wire: String) { WHOLE("whole"), PAGE("page"), EVENT("event"), WATCH("watch"), SEARCH("search") }

/** A run that failed. The session continues in cloud order. */
class ModelException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** The interface to the platform's runtime: one form's model. [LiteRtModel] is the one for a phone. */
interface Model {
    /** The counts of candidates (of [Stage.EVENT]: of events) that each stage was compiled for, ascending; null is any count. */
    val sizes: Map<Stage, List<Int>?>

    /** Whether the count of events is fixed too: the history is then padded to `events_max`. */
    val fixedEvents: Boolean

    /** Width of an event's state, 0 for a model without stages. */
    val eventStateWidth: Int

    /** The stage's outputs by the contract's names. Uses those of [inputs] that its graph has. Throws [ModelException]. */
    fun run(stage: Stage, size: Int, inputs: Map<String, Tensor>): Map<String, Tensor>
}

/** The part of a page that was not shown yet: [rows] of it, in cloud order. */
class Remaining(val page: PageFeatures, val rows: MutableList<Int>) {
    var states: Array<FloatArray?>? = null // by row of the page

    fun itemAt(index: Int) = page.itemIds[rows[index]]

    /** For each of the first [count] candidates, the index of the first one with equal features. */
    fun alike(count: Int): List<Int> {
        val first = HashMap<List<Any>, Int>()
        return rows.take(count).mapIndexed { index, row ->
            val floats = page.floats[row].asList() + page.vectors?.get(row)?.asList().orEmpty()
            first.getOrPut(floats.map { it + 0f } + page.categories[row].asList()) { index } // the sum turns -0 into 0
        }
    }
}

/** Orders the remaining items of a session. It keeps no state of a session, and is as thread-safe as its models. */
class Ranker(val spec: FeatureSpec, val splitVersion: String, val models: Map<Form, Model>) {
    val builder = FeatureBuilder(spec)
    private val weights = FloatArray(spec.tasks.size) { (spec.taskWeights[spec.tasks[it]] ?: 0.0).toFloat() }

    private fun staged(model: Model) = model.sizes.keys.containsAll(STAGES)

    /** Run the part of the model that depends on a page alone, when it arrives. Throws [ModelException]. */
    fun prepare(form: Form, held: Remaining) {
        val model = models.getValue(form)
        if (!staged(model)) return
        val states = arrayOfNulls<FloatArray>(held.page.itemIds.size)
        var at = 0
        while (at < held.rows.size) {
            val size = fitting(model.sizes[Stage.PAGE], held.rows.size - at)
            // Repeat the last rows where a full size would exceed them.
            val first = maxOf(0, minOf(at, held.rows.size - size))
            val out = model.run(Stage.PAGE, size, candidates(form, held, first, size)).floats("page_state", size)
            val width = out.shape[2]
            while (at < minOf(first + size, held.rows.size)) {
                val from = (at - first) * width
                states[held.rows[at++]] = out.values.copyOfRange(from, from + width)
            }
        }
        held.states = states
    }

    /**
     * Indices into `held.rows`, best first: the best list, where a graph searches for it, then by the weighted sum of the scores,
     * ties in cloud order; what is beyond the model's largest size follows in cloud order. Null when a score is not finite.
     * A runtime rounds a candidate by its place, so those with equal features take the sum of their first, and keep cloud order.
     */
    fun order(form: Form, held: Remaining, history: EventHistory, nowMs: Long, position: Long): List<Int>? {
        val model = models.getValue(form)
        val stage = when {
            !staged(model) -> Stage.WHOLE
            spec.searches && Stage.SEARCH in model.sizes -> Stage.SEARCH
            else -> Stage.WATCH
        }
        val wanted = minOf(held.rows.size, spec.candidatesMax)
        val size = fitting(model.sizes[stage], wanted)
        val count = minOf(wanted, size)
        val outputs = model.run(stage, size, inputs(model, form, stage, size, count, held, history, nowMs, position))
        val scores = outputs.floats("scores", size)
        if (scores.shape[2] != weights.size) throw ModelException("expected ${weights.size} scores, got ${scores.shape[2]}")
        val sums = FloatArray(count) { row ->
            var sum = 0f
            for (task in weights.indices) sum += weights[task] * scores.values[row * weights.size + task]
            sum
        }
        val alike = held.alike(count)
        val total = alike.map { sums[it] }
        if (!total.all { it.isFinite() }) return null
        val best = (0 until count).sortedByDescending { total[it] } // stable: ties stay in cloud order
        val found = (outputs["order"] as? Tensor.Ints)?.values?.filter { it in 0 until count }.orEmpty()
        val inCloudOrder = (0 until count).groupBy { alike[it] }.mapValues { it.value.iterator() }
        return (found + best).distinct().map { inCloudOrder.getValue(alike[it]).next() } + (count until held.rows.size)
    }

    private fun inputs(
        model: Model, form: Form, stage: Stage, size: Int, count: Int,
        held: Remaining, history: EventHistory, nowMs: Long, position: Long,
    ): Map<String, Tensor> {
        // Few exported graphs accept an axis of length 0, so an empty history is one masked row.
        val length = if (model.fixedEvents) spec.eventsMax else maxOf(1, history.count)
        val common = HashMap(history.moment(length, nowMs, position))
        common["context"] = builder.context(position, nowMs).let { Tensor.Floats(intArrayOf(1, it.size), it) }
        common["candidate_mask"] = Tensor.Floats(intArrayOf(1, size), FloatArray(size) { if (it < count) 1f else 0f })
        if (stage == Stage.WHOLE) return common + history.inputs(length) + candidates(form, held, 0, size)
        history.encode(form, model.sizes[Stage.EVENT]) { events, inputs ->
            model.run(Stage.EVENT, events, inputs).floats("event_state", events)
        }
        val states = held.states ?: throw ModelException("`prepare` comes before `order`")
        common["event_state"] = history.states(length, model.eventStateWidth)
        common["page_state"] = rows(List(size) { held.rows.getOrNull(it)?.let(states::get) }, states[held.rows[0]]?.size ?: 0)
        return common + userVector(form, held.page)
    }

    private fun candidates(form: Form, held: Remaining, first: Int, size: Int): Map<String, Tensor> {
        val page = held.page
        val window = List(size) { held.rows.getOrNull(first + it) } // null is padding, at the back
        val inputs = hashMapOf<String, Tensor>(
            "candidate_float" to rows(window.map { it?.let(page.floats::get) }, spec.candidateFloats.size),
            "candidate_category" to codes(window.map { it?.let(page.categories::get) }, spec.candidateCategories.size),
        )
        if (form == Form.SPLIT && page.vectors != null) {
            inputs["candidate_vector"] = rows(window.map { it?.let(page.vectors::get) }, spec.vectorWidth)
        }
        return inputs + userVector(form, page)
    }

    private fun userVector(form: Form, page: PageFeatures): Map<String, Tensor> =
        if (form != Form.SPLIT || page.userVector == null) emptyMap()
        else mapOf("user_vector" to Tensor.Floats(intArrayOf(1, spec.vectorWidth), page.userVector))

    private companion object {
        /** The stages that replace the whole model. */
        val STAGES = setOf(Stage.PAGE, Stage.EVENT, Stage.WATCH)

        fun Map<String, Tensor>.floats(name: String, rows: Int): Tensor.Floats {
            val found = this[name] as? Tensor.Floats ?: throw ModelException("expected the output $name, got $keys")
            if (found.shape.size != 3 || found.shape[1] != rows) throw ModelException("$name: got ${found.shape.toList()}")
            return found
        }
    }
}

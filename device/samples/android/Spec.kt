// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

/** Raw value × [scale], clipped to [[min], [max]]; a missing or NaN value becomes [default], which is already scaled. */
class FloatFeature(val name: String, val min: Double, val max: Double, val default: Double, val scale: Double) {
    fun input(raw: Double): Float {
        val scaled = raw * scale
        return (if (scaled.isNaN()) default else scaled.coerceIn(min, max)).toFloat()
    }
}

/** Codes 0 until [size]; 0 is unknown, and so is every other code. */
class CategoryFeature(val name: String, val size: Int) {
    fun input(code: Int) = if (code in 0 until size) code else 0
}

/** How a device builds the model's inputs: `spec.json` of the bundle. A spec that this code cannot follow is refused. */
class FeatureSpec(
    val tasks: List<String>,
    val taskWeights: Map<String, Double>,
    val candidatesMax: Int,
    val eventsMax: Int,
    val vectorWidth: Int,
    val candidateFloats: List<FloatFeature>,
    val candidateCategories: List<CategoryFeature>,
    val feedbackFloats: List<FloatFeature>,
    val contextFloats: List<FloatFeature>,
    val numbering: String?, // name of the codes of the categories
    val searches: Boolean, // whether the order begins with the best list, where the model has a graph that finds it
) {
    companion object {
        val CONTEXT = setOf("position", "hour")
        private const val COUNT_MAX = 10_000
        private const val WIDTH_MAX = 4096

        private val FIELDS = FeedbackEvent("", 0, "", 0, 0, 0, 0).fields().keys + setOf("age_ms", "actions")
        private val NUMBERS = FIELDS -
            setOf("version", "event_id", "user_id", "session_id", "item_id", "page_id", "experiment", "impression_ms", "age_ms", "actions")
        private val ACTION = Regex("[a-z][a-z0-9_]{0,47}")

        /** Feedback features are the fields of an event that are numbers, or may be, and the app's own actions. */
        private fun isFeedback(name: String) = name in NUMBERS || (name !in FIELDS && ACTION.matches(name))

        fun read(node: Node): FeatureSpec {
            node.checkVersion()
            val search = node["search"].optional { this }
            return FeatureSpec(
                tasks = node["tasks"].list().map { it.text() },
                taskWeights = node["task_weights"].map().keys.associate { it as String to node["task_weights"][it].double() },
                candidatesMax = count(node["candidates_max"], 1..COUNT_MAX),
                eventsMax = count(node["events_max"], 1..COUNT_MAX),
                vectorWidth = count(node["vector_width"], 0..WIDTH_MAX),
                candidateFloats = floats(node["candidate_floats"]) { true },
                candidateCategories = unique(node["candidate_categories"]) {
                    CategoryFeature(it["name"].text(), count(it["size"], 1..Int.MAX_VALUE))
                },
                feedbackFloats = floats(node["feedback_floats"], ::isFeedback),
                contextFloats = floats(node["context_floats"]) { it in CONTEXT },
                numbering = node["numbering"].optional { text() },
                searches = search != null && (search["steps_max"].optional { int() } ?: 5) > 1,
            )
        }

        private fun count(node: Node, allowed: IntRange) = node.int().also { if (it !in allowed) node.refuse("$allowed") }

        /** Features that a device cannot compute are refused now, because they would stay at their defaults. */
        private fun floats(group: Node, known: (String) -> Boolean) = unique(group) { node ->
            val feature = FloatFeature(
                name = node["name"].text(),
                min = node["min"].double(),
                max = node["max"].double(),
                default = node["default"].optional { double() } ?: 0.0,
                scale = node["scale"].optional { double() } ?: 1.0,
            )
            if (!known(feature.name)) node["name"].refuse("a feature that a device knows")
            if (!(feature.default in feature.min..feature.max)) node.refuse("min <= default <= max")
            if (!feature.scale.isFinite()) node["scale"].refuse("a finite number")
            feature
        }

        private fun <T> unique(group: Node, read: (Node) -> T): List<T> {
            val names = group.list().map { it["name"].text() }
            if (names.toSet().size != names.size) throw ContractException(group.path, "unique names", "$names")
            return group.list().map(read)
        }
    }
}

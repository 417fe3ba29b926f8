// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

/** A flat array in row-major order and its shape: what goes into a model and comes out of it. */
sealed class Tensor {
    abstract val shape: IntArray

    class Floats(override val shape: IntArray, val values: FloatArray) : Tensor()

    class Ints(override val shape: IntArray, val values: IntArray) : Tensor()
}

/**
 * A page as the model sees it, in cloud order without repeats. Built once when the page arrives; a swipe only copies rows.
 * Features that could not be read ([readable] is false) are defaults, and the page can only be shown in cloud order.
 */
class PageFeatures(
    val itemIds: LongArray,
    val floats: Array<FloatArray>,
    val categories: Array<IntArray>,
    val vectors: Array<FloatArray>?, // both null where the page has none of the spec's width
    val userVector: FloatArray?,
    val readable: Boolean,
    val duplicates: Int,
    val missingColumns: Int,
) {
    /** For the self-contained form: vectors of another lower half must not reach a split model, not even as those of events. */
    fun withoutVectors() = PageFeatures(itemIds, floats, categories, null, null, readable, duplicates, missingColumns)
}

/** Builds the model's inputs as one spec says. It keeps no state, so all sessions can share it. */
class FeatureBuilder(val spec: FeatureSpec) {
    /** Throws [ContractException] when even the item ids cannot be read. */
    fun page(page: Page): PageFeatures {
        val ids = page.itemId.table("$.candidates.item_id", "i8", 1)
        val kept = (0 until ids.rows).distinctBy { ids.long(it) } // the first of each id
        val floats = try { floatColumns(page, ids.rows) } catch (e: ContractException) { null }
        val categories = try { categoryColumns(page, ids.rows) } catch (e: ContractException) { null }
        val readable = floats != null && categories != null
        // A column returns the raw value of a row. A missing column returns the feature's default for every row.
        val floatOf = spec.candidateFloats.map { feature -> feature to if (readable) floats[feature.name] else null }
        val codeOf = spec.candidateCategories.map { feature -> feature to if (readable) categories[feature.name] else null }
        val vectors = vectors(page, ids.rows)
        return PageFeatures(
            itemIds = LongArray(kept.size) { ids.long(kept[it]) },
            floats = Array(kept.size) { i ->
                FloatArray(floatOf.size) { floatOf[it].let { (feature, raw) -> feature.input(raw?.invoke(kept[i]) ?: Double.NaN) } }
            },
            categories = Array(kept.size) { i ->
                IntArray(codeOf.size) { codeOf[it].let { (feature, raw) -> feature.input(raw?.invoke(kept[i]) ?: 0) } }
            },
            vectors = vectors?.let { (rows, _) -> Array(kept.size) { rows[kept[it]] } },
            userVector = vectors?.second,
            readable = readable,
            duplicates = ids.rows - kept.size,
            missingColumns = if (readable) (floatOf.map { it.second } + codeOf.map { it.second }).count { it == null } else 0,
        )
    }

    private fun floatColumns(page: Page, rows: Int): Map<String, (Int) -> Double> {
        val table = table(page.floats, "$.candidates.floats", "f4", rows)
        return columns(page.floats) { column -> { row -> table.float(row, column).toDouble() } }
    }

    private fun categoryColumns(page: Page, rows: Int): Map<String, (Int) -> Int> {
        val table = table(page.categories, "$.candidates.categories", "i4", rows)
        if (spec.numbering != null && page.numbering != null && page.numbering != spec.numbering) return emptyMap() // other codes
        return columns(page.categories) { column -> { row -> table.int(row, column) } }
    }

    /** Columns are found by name, never by index: a page may have more columns than the spec names, in any order. */
    private fun <T> columns(group: Columns, column: (Int) -> T) = group.names.withIndex().associate { (i, name) -> name to column(i) }

    private fun table(group: Columns, path: String, dtype: String, rows: Int): Block.Table {
        if (group.names.toSet().size != group.names.size) throw ContractException("$path.names", "unique names", "${group.names}")
        return group.values.table("$path.values", dtype, 2).also { it.checkShape(rows, group.names.size, "$path.values") }
    }

    private fun Block.Table.checkShape(rows: Int, columns: Int, path: String) {
        if (this.rows != rows || this.columns != columns) {
            throw ContractException("$path.shape", "[$rows, $columns]", "[${this.rows}, ${this.columns}]")
        }
    }

    private fun vectors(page: Page, rows: Int): Pair<List<FloatArray>, FloatArray>? {
        val (own, user) = (page.vector ?: return null) to (page.userVector ?: return null)
        return try {
            val vectors = own.table("$.candidates.vector", "f2", 2).also { it.checkShape(rows, spec.vectorWidth, "$.candidates.vector") }
            val userVector = user.table("$.user_vector", "f2", 1).also { it.checkShape(spec.vectorWidth, 1, "$.user_vector") }
            val width = spec.vectorWidth
            List(rows) { row -> FloatArray(width) { finite(vectors.half(row, it)) } } to FloatArray(width) { finite(userVector.half(it, 0)) }
        } catch (e: ContractException) {
            null
        }
    }

    private fun finite(value: Float) = if (value.isFinite()) value else 0f

    /** `event_feedback` of one event. A value that the platform does not report becomes the feature's default. */
    fun feedback(event: FeedbackEvent): FloatArray {
        val fields = event.fields()
        return FloatArray(spec.feedbackFloats.size) { i ->
            val feature = spec.feedbackFloats[i]
            val value = if (feature.name in fields) fields[feature.name] else feature.name in event.actions
            feature.input(
                when (value) {
                    is Number -> value.toDouble()
                    is Boolean -> if (value) 1.0 else 0.0
                    else -> Double.NaN
                },
            )
        }
    }

    /** `context` of this moment: the impressions so far, and the whole hour of the day in UTC, whatever the user's time zone. */
    fun context(position: Long, nowMs: Long): FloatArray {
        val values = mapOf("position" to position.toDouble(), "hour" to Math.floorMod(Math.floorDiv(nowMs, HOUR_MS), 24L).toDouble())
        return FloatArray(spec.contextFloats.size) { spec.contextFloats[it].input(values.getValue(spec.contextFloats[it].name)) }
    }

    private companion object {
        const val HOUR_MS = 3_600_000L
    }
}

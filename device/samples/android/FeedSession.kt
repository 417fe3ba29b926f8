// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

/** Counters of everything unusual, so that no fallback is silent. The names are those of the SDK's counters. */
enum class Count {
    PAGES_REFUSED, PAGES_EMPTY, FEATURES_BAD, COLUMNS_MISSING, SPLIT_MISMATCH, VECTORS_ABSENT, VECTORS_BAD, NO_MODEL, DUPLICATES,
    ALREADY_SHOWN, RERANKS, MODEL_FAILED, SCORES_BAD, EVENTS, EVENTS_DUPLICATE, EVENTS_UNKNOWN_ITEM, EVENTS_LATE, SHOWN_ELSEWHERE
}

/** When to ask for a page, and for how many: once [consume] of a page were shown, none is left, or it is stale; for [size]. */
class Paging(val consume: Int = 10, val size: Int = 30)

/** Whether to ask now, and why: `empty`, `stale`, `consumed`, or `continue`. */
class PageDecision(val request: Boolean, val size: Int, val reason: String)

/**
 * One user's feed: takes pages, shows the best item next, learns from each swipe, says when to ask for more. Not for use from
 * several threads: give it one background executor (FeedFragment.kt). Nothing here throws for bad data or a broken model; each
 * fallback is counted in [counts]. Without a [ranker] (no bundle yet) the feed keeps cloud order.
 */
class FeedSession(
    private val ranker: Ranker?,
    private val userId: Long,
    private val sessionId: String,
    private val outbox: Outbox,
    private val paging: Paging = Paging(),
    private val steady: () -> Long = { System.nanoTime() / 1_000_000 }, // on a phone `SystemClock::elapsedRealtime`
    private val clock: () -> Long = System::currentTimeMillis,
) {
    val counts = java.util.EnumMap<Count, Int>(Count::class.java)

    /** The form of the model that orders this page; null is cloud order. */
    var form: Form? = null
        private set

    /** Impressions so far: the position in the session of the item that [next] will show. */
    var position = 0L
        private set

    private val builder = ranker?.builder ?: FeatureBuilder(NO_FEATURES)
    private val history = EventHistory(builder.spec)
    private val shown = LinkedHashMap<Long, Pair<PageFeatures, Int>>() // item → its row of its page, oldest first
    private var page: Page? = null
    private var held: Remaining? = null
    private var order: List<Int>? = null // null: out of date
    private var takenMs = 0L
    private var shownOfPage = 0
    private var requests = 0

    /** Id of the current page, for [FeedbackEvent.pageId]. */
    val pageId get() = page?.pageId

    /** Replace the remaining items by [page]. False when it has no new item; the remaining items then stay. */
    fun take(page: Page): Boolean {
        var features = try { builder.page(page) } catch (e: ContractException) { count(Count.PAGES_REFUSED); return false }
        count(Count.DUPLICATES, features.duplicates)
        val rows = features.itemIds.indices.filterTo(ArrayList()) { features.itemIds[it] !in shown }
        count(Count.ALREADY_SHOWN, features.itemIds.size - rows.size)
        if (rows.isEmpty()) { count(Count.PAGES_EMPTY); return false }
        form = chooseForm(page, features)
        if (form != Form.SPLIT) features = features.withoutVectors()
        val held = Remaining(features, rows)
        form = try { form?.also { ranker?.prepare(it, held) } } catch (e: ModelException) { count(Count.MODEL_FAILED); null }
        this.page = page
        this.held = held
        order = null
        takenMs = steady()
        shownOfPage = 0
        return true
    }

    /** A model never gets vectors of another split version: then the self-contained form orders the page, else cloud order. */
    private fun chooseForm(page: Page, features: PageFeatures): Form? {
        val models = ranker?.models ?: return null
        count(Count.COLUMNS_MISSING, features.missingColumns)
        if (!features.readable) { count(Count.FEATURES_BAD); return null }
        if (Form.SPLIT in models) {
            when {
                page.vector == null || page.userVector == null -> count(Count.VECTORS_ABSENT)
                page.splitVersion != ranker.splitVersion -> count(Count.SPLIT_MISMATCH)
                features.vectors == null -> count(Count.VECTORS_BAD)
                else -> return Form.SPLIT
            }
        }
        if (Form.SELF_CONTAINED in models) return Form.SELF_CONTAINED
        count(Count.NO_MODEL)
        return null
    }

    /** The item to show now, which then counts as shown; null when none remains. */
    fun next(): Long? {
        val held = held?.takeIf { it.rows.isNotEmpty() } ?: return null
        val best = rank(held)[0]
        return held.itemAt(best).also { show(held, best) }
    }

    /** The remaining items in their current order, for prefetching. */
    fun remaining(): List<Long> = held?.let { held -> rank(held).map(held::itemAt) }.orEmpty()

    /** Learn from a finished impression and queue it for upload. False for one whose id is known. */
    fun feedback(event: FeedbackEvent): Boolean {
        if (!outbox.add(event)) { count(Count.EVENTS_DUPLICATE); return false }
        count(Count.EVENTS)
        if (event.itemId !in shown) {
            val held = held
            val at = held?.rows?.indices?.firstOrNull { held.itemAt(it) == event.itemId }
            if (held == null || at == null) { count(Count.EVENTS_UNKNOWN_ITEM); return true }
            count(Count.SHOWN_ELSEWHERE)
            show(held, at)
        }
        val (features, row) = shown.getValue(event.itemId)
        val kept = history.append(event.impressionMs, event.position, builder.feedback(event), features, row)
        if (!kept) count(Count.EVENTS_LATE)
        order = null
        return true
    }

    /** Whether to ask the cloud for a page now. Ages are by a clock that nobody sets: the wall clock may be set at any time. */
    fun wantsPage(): PageDecision {
        val page = page
        val held = held
        val reason = when {
            page == null || held == null || held.rows.isEmpty() -> "empty"
            steady() - takenMs >= page.ttlMs -> "stale"
            shownOfPage >= paging.consume -> "consumed"
            else -> "continue"
        }
        return PageDecision(reason != "continue", paging.size, reason)
    }

    /**
     * The request for the next page, with up to [eventsMax] events of waiting feedback. After its answer, which is a page with
     * its id, pass its events to [Outbox.acknowledged].
     */
    fun request(size: Int, scene: Int = 0, eventsMax: Int = Outbox.EVENTS_MAX): PageRequest {
        requests++
        val id = "$sessionId/$requests"
        val waiting = outbox.waiting(eventsMax)
        val body = linkedMapOf(
            "version" to Node.WIRE_VERSION,
            "request_id" to id,
            "user_id" to userId,
            "session_id" to sessionId,
            "now_ms" to clock(),
            "size" to size,
            "scene" to scene,
            // Without the version the cloud sends a page without vectors.
            "split_version" to ranker?.takeIf { Form.SPLIT in it.models }?.splitVersion,
            "feedback" to waiting.values.map { MessagePack.Raw(it) },
            "exclude" to shown.keys.toList(),
        )
        return PageRequest(id, MessagePack.encode(body), waiting.keys.toList())
    }

    /** Indices into `held.rows`, best first; computed once after each change. */
    private fun rank(held: Remaining): List<Int> =
        order ?: (scored(held) ?: held.rows.indices.toList()).also { order = it }

    private fun scored(held: Remaining): List<Int>? {
        val form = form
        if (ranker == null || form == null || held.rows.size < 2) return null
        val order = try {
            ranker.order(form, held, history, clock(), position)
        } catch (e: ModelException) {
            count(Count.MODEL_FAILED)
            return null
        }
        count(if (order == null) Count.SCORES_BAD else Count.RERANKS)
        return order
    }

    private fun show(held: Remaining, index: Int) {
        shown[held.itemAt(index)] = held.page to held.rows.removeAt(index)
        if (shown.size > SHOWN_MAX) shown.remove(shown.keys.first())
        position++
        shownOfPage++
        order = null
    }

    private fun count(what: Count, by: Int = 1) { counts[what] = (counts[what] ?: 0) + by }

    private companion object {
        const val SHOWN_MAX = 256 // items that the cloud leaves out of the next page, and whose features feedback needs
        val NO_FEATURES = FeatureSpec(listOf("none"), emptyMap(), 1, 1, 0, emptyList(), emptyList(), emptyList(), emptyList(), null, false)
    }
}

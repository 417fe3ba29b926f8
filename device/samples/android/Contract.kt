// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

import java.nio.ByteBuffer
import java.nio.ByteOrder

// The messages between cloud and device, as in docs/contract.md. `read` checks types only, so that a page whose features are
// bad can still be shown in cloud order; the content of a block is checked where it is used.

/** An array: little-endian, row-major, `dtype` one of f2, f4, i4, i8, u1. */
class Block private constructor(private val dtype: String, private val shape: List<Long>, private val data: ByteArray) {
    /** The block as rows and columns (a vector is one column), once dtype, shape and length agree. */
    fun table(path: String, dtype: String, dims: Int): Table {
        if (this.dtype != dtype) throw ContractException("$path.dtype", "`$dtype`", "`${this.dtype}`")
        if (shape.size != dims) throw ContractException("$path.shape", "$dims dimensions", "${shape.size}")
        // Check the shape before anything is computed from it: a hostile page may claim any.
        if (shape.any { it !in 0..ELEMENTS_MAX } || shape.fold(1.0) { all, d -> all * d } > ELEMENTS_MAX) {
            throw ContractException("$path.shape", "at most $ELEMENTS_MAX elements", shape.toString())
        }
        val size = shape.fold(1L) { all, d -> all * d } * SIZES.getValue(dtype)
        if (data.size.toLong() != size) throw ContractException("$path.data", "$size bytes", "${data.size} bytes")
        return Table(shape[0].toInt(), shape.getOrElse(1) { 1 }.toInt(), ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN))
    }

    class Table(val rows: Int, val columns: Int, private val data: ByteBuffer) {
        fun half(row: Int, column: Int) = halfToFloat(data.getShort((row * columns + column) * 2).toInt())
        fun float(row: Int, column: Int) = data.getFloat((row * columns + column) * 4)
        fun int(row: Int, column: Int) = data.getInt((row * columns + column) * 4)
        fun long(row: Int) = data.getLong(row * columns * 8)
    }

    companion object {
        private const val ELEMENTS_MAX = 1L shl 24
        private val SIZES = mapOf("f2" to 2, "f4" to 4, "i4" to 4, "i8" to 8, "u1" to 1)

        fun read(node: Node): Block {
            val dtype = node["dtype"].text()
            if (dtype !in SIZES) node["dtype"].refuse("one of ${SIZES.keys}")
            return Block(dtype, node["shape"].list().map { it.long() }, node["data"].bytes())
        }
    }
}

/** An IEEE 754 half. (`android.util.Half` does the same from API 26 on.) */
fun halfToFloat(bits: Int): Float {
    val sign = if (bits and 0x8000 == 0) 1f else -1f
    val exponent = bits shr 10 and 0x1f
    val fraction = bits and 0x3ff
    return sign * when (exponent) {
        0 -> Math.scalb(fraction.toFloat(), -24)
        0x1f -> if (fraction == 0) Float.POSITIVE_INFINITY else Float.NaN
        else -> Math.scalb((fraction or 0x400).toFloat(), exponent - 25)
    }
}

/** A named group of columns, `values` [rows, names.size]. */
class Columns(val names: List<String>, val values: Block) {
    companion object {
        fun read(node: Node) = Columns(node["names"].list().map { it.text() }, Block.read(node["values"]))
    }
}

class Page(
    val pageId: String,
    val requestId: String,
    val feedbackKept: Boolean, // if not, the feedback of the request has to be sent again
    val ttlMs: Long,
    val computePrice: Double,
    val itemId: Block,
    val floats: Columns,
    val categories: Columns,
    val numbering: String?,
    val vector: Block?,
    val userVector: Block?,
    val splitVersion: String?,
) {
    companion object {
        /** The page in an answer of `POST /v1/page`. Throws [ContractException]; the request then counts as failed. */
        fun decode(bytes: ByteArray): Page {
            val page = MessagePack.decode(bytes).also { it.checkVersion() }
            page["created_ms"].long() // not used: by the cloud's clock, which may differ from the device's
            val candidates = page["candidates"]
            return Page(
                pageId = page["page_id"].text(),
                requestId = page["request_id"].text(),
                feedbackKept = page["degraded"].optional { list().none { it.text() == "no_feedback" } } ?: true,
                ttlMs = page["ttl_ms"].long(),
                computePrice = page["compute_price"].optional { double() } ?: 1.0,
                itemId = Block.read(candidates["item_id"]),
                floats = Columns.read(candidates["floats"]),
                categories = Columns.read(candidates["categories"]),
                numbering = candidates["numbering"].optional { text() },
                vector = candidates["vector"].optional(Block::read),
                userVector = page["user_vector"].optional(Block::read),
                splitVersion = page["split_version"].optional { text() },
            )
        }
    }
}

enum class Ended { SWIPE, COMPLETE, EXIT, BACKGROUND } // their ordinals are the codes on the wire

enum class Orientation { PORTRAIT, LANDSCAPE }

enum class Network { OFFLINE, CELLULAR, WIFI }

/** One finished impression. A value that this phone does not report stays null, because an invented one would mislead the model. */
data class FeedbackEvent(
    val eventId: String, // unique: the session and a UUID. The cloud applies an id once, so sending twice is harmless
    val userId: Long,
    val sessionId: String,
    val itemId: Long,
    val position: Long, // index in the session, from 0
    val impressionMs: Long,
    val watchMs: Long,
    val pageId: String? = null,
    val experiment: String? = null,
    val ended: Ended = Ended.SWIPE,
    val click: Boolean = false,
    val like: Boolean = false,
    val follow: Boolean = false,
    val comment: Boolean = false,
    val share: Boolean = false,
    val profileEnter: Boolean = false,
    val dislike: Boolean = false,
    val volume: Double? = null,
    val volumeChange: Double? = null,
    val muted: Boolean? = null,
    val orientation: Orientation? = null,
    val playbackRate: Double? = null,
    val pauses: Long? = null,
    val seeks: Long? = null,
    val scrollSpeed: Double? = null, // screens per second
    val network: Network? = null,
    val bufferingMs: Long? = null,
    val batterySaver: Boolean? = null,
    val backgrounded: Boolean? = null,
    val actions: List<String> = emptyList(), // the app's own, such as "purchase", each once
) {
    /** The fields by their names on the wire, which are also the names of the spec's `feedback_floats`. */
    fun fields(): Map<String, Any?> = linkedMapOf<String, Any?>(
        "version" to Node.WIRE_VERSION, "event_id" to eventId, "user_id" to userId, "session_id" to sessionId,
        "item_id" to itemId, "position" to position, "impression_ms" to impressionMs, "watch_ms" to watchMs,
        "page_id" to pageId, "experiment" to experiment, "ended" to ended.ordinal, "click" to click, "like" to like,
        "follow" to follow, "comment" to comment, "share" to share, "profile_enter" to profileEnter, "dislike" to dislike,
        "volume" to volume, "volume_change" to volumeChange, "muted" to muted, "orientation" to orientation?.ordinal,
        "playback_rate" to playbackRate, "pauses" to pauses, "seeks" to seeks, "scroll_speed" to scrollSpeed,
        "network" to network?.ordinal, "buffering_ms" to bufferingMs, "battery_saver" to batterySaver,
        "backgrounded" to backgrounded,
    ).also { if (actions.isNotEmpty()) it["actions"] = actions }

    fun encode() = MessagePack.encode(fields())
}

/** The body of `POST /v1/page`: [bytes], which hold the events of [eventIds]. */
class PageRequest(val id: String, val bytes: ByteArray, val eventIds: List<String>)

/** The answer of `POST /v1/feedback`. */
class Receipt private constructor(private val taken: List<Long>, private val refused: List<Long>) {
    /** Whether it speaks of each of a batch's [count] events once, so that the device may forget them. */
    fun settles(count: Int): Boolean {
        val places = refused.filterTo(HashSet()) { it in 0 until count }
        return taken.all { it in 0..count } && places.size == refused.size && taken.sum() + refused.size == count.toLong()
    }

    companion object {
        /** Throws [ContractException]. */
        fun decode(bytes: ByteArray): Receipt {
            val receipt = MessagePack.decode(bytes).also { it.checkVersion() }
            val refused = receipt["refused"].optional { list().map { it["index"].long() } }.orEmpty()
            return Receipt(listOf(receipt["accepted"].long(), receipt["duplicates"].long()), refused)
        }
    }
}

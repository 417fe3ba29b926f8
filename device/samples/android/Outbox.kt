// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

import java.io.File
import java.io.IOException
import java.nio.ByteBuffer

/**
 * Events that wait for their upload, in the order they came, each id once; full, it lets the oldest go. They are written to
 * [file] as they come and survive the app's end: an event must be kept until the cloud has acknowledged it. Where the disk fails
 * they stay in memory: feedback must never stop the feed.
 */
class Outbox(private val file: File?, private val waitingMax: Int = WAITING_MAX) {
    private val waiting = LinkedHashMap<String, ByteArray>()
    private val known = LinkedHashSet<String>() // ids sent or not, to tell repeats

    init {
        // One event after the other, each behind its size. What was cut by the end of the process is left out.
        val bytes = try { file?.takeIf { it.exists() }?.readBytes() } catch (e: IOException) { null } ?: ByteArray(0)
        var at = 0
        while (at + 4 <= bytes.size) {
            val size = ByteBuffer.wrap(bytes, at, 4).int
            if (size !in 0..bytes.size - at - 4) break
            val event = bytes.copyOfRange(at + 4, at + 4 + size)
            val id = try { MessagePack.decode(event)["event_id"].text() } catch (e: ContractException) { break }
            remember(id)
            waiting[id] = event
            at += 4 + size
        }
        trim()
        if (at < bytes.size) rewrite() // what comes next must not stand behind half an event
    }

    /** False when an event of this id was there before, sent or not. */
    fun add(event: FeedbackEvent): Boolean {
        if (!remember(event.eventId)) return false
        val bytes = event.encode()
        waiting[event.eventId] = bytes
        if (!trim()) try { file?.appendBytes(framed(bytes)) } catch (e: IOException) { rewrite() }
        return true
    }

    /** All that waits, as it is sent, by id. It waits until it is [acknowledged]. */
    fun waiting(): Map<String, ByteArray> = LinkedHashMap(waiting)

    /** The cloud has answered the request or batch that held these. */
    fun acknowledged(eventIds: Collection<String>) {
        waiting.keys.removeAll(eventIds.toSet())
        rewrite()
    }

    /** The body of `POST /v1/feedback`, for when the app leaves and no page is asked for. */
    fun batch(): ByteArray = MessagePack.encode(
        linkedMapOf("version" to Node.WIRE_VERSION, "events" to waiting.values.map { MessagePack.Raw(it) }),
    )

    private fun remember(id: String) = known.add(id).also { if (known.size > IDS_MAX) known.remove(known.first()) }

    private fun trim(): Boolean {
        val over = waiting.size - waitingMax
        if (over <= 0) return false
        // Some more than must go, so that a full outbox does not rewrite its file at every swipe.
        waiting.keys.take(over + waitingMax / 100).forEach(waiting::remove)
        rewrite()
        return true
    }

    /** Whole or not at all: beside it, then renamed over it. */
    private fun rewrite() {
        if (file == null) return
        val beside = File(file.path + ".new")
        try {
            beside.outputStream().use { out -> waiting.values.forEach { out.write(framed(it)) } }
            if (!beside.renameTo(file)) throw IOException("cannot rename $beside")
        } catch (e: IOException) {
            beside.delete()
        }
    }

    private fun framed(bytes: ByteArray) = ByteBuffer.allocate(4 + bytes.size).putInt(bytes.size).put(bytes).array()

    private companion object {
        const val WAITING_MAX = 10_000 // an hour of swiping has about a thousand
        const val IDS_MAX = 4096
    }
}

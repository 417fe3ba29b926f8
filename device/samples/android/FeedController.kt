// SAMPLE, not run on a device. Type-checked against declarations made from the documentation, never run: see README.md.
package pocketrank.sample

import android.os.Handler
import android.os.Looper
import android.os.SystemClock
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.URL
import java.util.UUID
import java.util.concurrent.LinkedBlockingQueue
import java.util.concurrent.ThreadPoolExecutor
import java.util.concurrent.TimeUnit

/**
 * Stands between the screen and a [FeedSession]. The session, the model and the outbox live on one background thread; the network
 * on another, so that a slow cloud never holds up an order; the screen only receives the next item, on the main thread.
 *
 * The feed holds the item on screen and the next one, whose video is being buffered. Neither moves when the order changes:
 * each swipe decides what follows them.
 */
class FeedController(
    filesDir: File, // Context.filesDir: the bundle's folder and the outbox
    private val cloud: String, // such as "https://feed.example.com"
    val userId: Long,
    private val append: (itemId: Long, pageId: String?, position: Long) -> Unit, // on the main thread
) {
    val sessionId = UUID.randomUUID().toString()
    private val main = Handler(Looper.getMainLooper())
    private val ranking = background("ranking")
    private val network = background("feed-network")
    private val bundleFolder = File(filesDir, "pocketrank/bundle")
    private val outboxFile = File(filesDir, "pocketrank/outbox-$userId") // nobody sends the feedback of another account

    // The members below belong to the ranking thread.
    private lateinit var outbox: Outbox
    private lateinit var session: FeedSession
    private var models = emptyList<LiteRtModel>()
    private var reached = 0L // the farthest position that was on screen
    private var asking = false
    private var retryMs = RETRY_MS
    private var eventsMax = Outbox.EVENTS_MAX
    private var failures = 0 // in a row, of requests with events
    private var suspects = emptyList<String>() // events with which the last request failed: the next one carries none
    private var refused = false // whether the cloud blamed what was sent

    /** Work that arrives after the end is dropped. An upload's answer is then ignored, and its events are sent again. */
    private fun background(name: String) =
        ThreadPoolExecutor(1, 1, 0, TimeUnit.SECONDS, LinkedBlockingQueue(), { Thread(it, name) }, ThreadPoolExecutor.DiscardPolicy())

    fun start() = ranking.execute {
        outboxFile.parentFile?.mkdirs()
        outbox = Outbox(outboxFile)
        session = FeedSession(openRanker(), userId, sessionId, outbox, steady = SystemClock::elapsedRealtime)
        fill()
    }

    /** A bundle that is missing, damaged or does not run results in cloud order, not in a crash. */
    private fun openRanker(): Ranker? = try {
        val bundle = Bundle.open(bundleFolder)
        val byForm = Form.entries.mapNotNull { form -> bundle.model(form)?.let { form to LiteRtModel(it) } }.toMap()
        models = byForm.values.toList()
        Ranker(bundle.spec, bundle.splitVersion, byForm).takeIf { byForm.isNotEmpty() }
    } catch (e: BundleException) {
        null
    } catch (e: ModelException) {
        null
    }

    /** The user has left an item for the one at position [now]: learn from it, then choose the item after the buffered one. */
    fun finished(event: FeedbackEvent, now: Long) = ranking.execute {
        session.feedback(event)
        reached = maxOf(reached, now)
        fill()
    }

    private fun fill() {
        while (session.position <= reached + AHEAD) {
            val position = session.position
            val item = session.next() ?: break
            val pageId = session.pageId
            main.post { append(item, pageId, position) }
        }
        ask()
    }

    private fun ask() {
        val decision = session.wantsPage()
        if (asking || !decision.request) return
        asking = true
        val request = session.request(decision.size, eventsMax = if (suspects.isEmpty()) eventsMax else 0)
        network.execute {
            val answer = try { post("/v1/page", request.bytes) } catch (e: IOException) { null }
            ranking.execute { answered(request, answer) }
        }
    }

    private fun answered(request: PageRequest, answer: Answer?) {
        val body = answer?.body
        val page = try { body?.let(Page::decode)?.takeIf { it.requestId == request.id } } catch (e: ContractException) { null }
        if (page == null) failed(request, answer?.status in REFUSALS) else succeeded(request, page.feedbackKept)
        if (page != null && session.take(page)) {
            asking = false
            retryMs = RETRY_MS
            fill()
            return
        }
        // Swipes do not ask again during a delay that doubles with each failure, and with each page that brings nothing new.
        main.postDelayed({ ranking.execute { asking = false; ask() } }, retryMs)
        retryMs = minOf(retryMs * 2, RETRY_MAX_MS)
    }

    /** No page may depend on its feedback, which still waits in the outbox: where that may be the cause, the next request has none. */
    private fun failed(request: PageRequest, refused: Boolean) {
        if (request.eventIds.isNotEmpty()) failures++
        this.refused = refused
        suspects = if (refused || failures >= DOUBT) request.eventIds else emptyList()
    }

    private fun succeeded(request: PageRequest, kept: Boolean) {
        if (request.eventIds.isEmpty()) { // it was the feedback: fewer events go along, and one that was refused alone is dropped
            if (suspects.isNotEmpty()) eventsMax = maxOf(1, suspects.size / 2)
            if (suspects.size == 1 && refused) outbox.acknowledged(suspects)
        } else if (kept) {
            outbox.acknowledged(request.eventIds)
            failures = 0
            eventsMax = minOf(2 * eventsMax, Outbox.EVENTS_MAX)
        }
        suspects = emptyList()
    }

    /** The app goes to the background and may be killed there. Events that cannot be sent now are sent at the next start. */
    fun stop() = ranking.execute {
        val waiting = outbox.waiting(eventsMax)
        if (waiting.isEmpty()) return@execute
        val batch = outbox.batch(waiting)
        network.execute {
            val receipt = try {
                post("/v1/feedback", batch).body?.let(Receipt::decode)
            } catch (e: IOException) {
                null
            } catch (e: ContractException) {
                null
            }
            if (receipt?.settles(waiting.size) == true) ranking.execute { outbox.acknowledged(waiting.keys) }
        }
    }

    fun close() {
        stop()
        ranking.execute {
            models.forEach { it.close() }
            network.shutdown() // the last upload still runs
        }
        ranking.shutdown()
    }

    /** An answer of the cloud; [body] is null for another status than 200. */
    private class Answer(val status: Int, val body: ByteArray?)

    private fun post(path: String, body: ByteArray): Answer {
        val connection = URL(cloud + path).openConnection() as HttpURLConnection
        try {
            connection.requestMethod = "POST"
            connection.doOutput = true
            connection.connectTimeout = TIMEOUT_MS
            connection.readTimeout = TIMEOUT_MS
            connection.setRequestProperty("Content-Type", "application/msgpack")
            connection.setRequestProperty("Accept", "application/msgpack")
            connection.outputStream.use { it.write(body) }
            val status = connection.responseCode
            return Answer(status, if (status == 200) connection.inputStream.use { input -> readAtMost(input, ANSWER_MAX) } else null)
        } finally {
            connection.disconnect()
        }
    }

    private fun readAtMost(input: InputStream, most: Int): ByteArray {
        val out = ByteArrayOutputStream()
        val part = ByteArray(1 shl 16)
        while (true) {
            val size = input.read(part)
            if (size < 0) return out.toByteArray()
            out.write(part, 0, size)
            if (out.size() > most) throw IOException("more than $most bytes")
        }
    }

    private companion object {
        const val AHEAD = 1
        const val RETRY_MS = 1_000L
        const val RETRY_MAX_MS = 60_000L
        const val TIMEOUT_MS = 5_000
        const val DOUBT = 2 // failures in a row after which every other request carries no feedback
        val REFUSALS = setOf(400, 413, 422) // statuses that blame what was sent
        const val ANSWER_MAX = 16 shl 20 // bytes; a page of 60 candidates has ten thousand
    }
}
